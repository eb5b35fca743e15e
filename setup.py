"""Installation. Configuration files travel in the wheel as `prompt_tuning/assets`."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
# From the one file that says it; importing the package is no part of building it.
VERSION = re.search(
  r'__version__ = "([^"]+)"', (ROOT / "prompt_tuning" / "_version.py").read_text()
).group(1)


def asset_packages() -> dict[str, str]:
  """Package name -> folder, for each folder of gin/ and configs/ (no __init__.py)."""
  found = {}
  for top in ("gin", "configs"):
    for folder in [ROOT / top, *(ROOT / top).rglob("*")]:
      if folder.is_dir() and folder.name != "__pycache__":
        path = folder.relative_to(ROOT)
        found["prompt_tuning.assets." + ".".join(path.parts)] = str(path)
  return found


ASSETS = asset_packages()

# Neither qwix nor aqtp for int8 weights: they quantise the products of a model that is
# in memory. Here only storage is int8, and each array is rounded while it is read
# (`prompt_tuning/backbones/common/int8.py`).
REQUIRES = [
  "jax>=0.7,<0.11",  # arrays, compilation
  "flax>=0.11,<0.13",  # flax.linen modules, T5X's partitioning of parameters
  "optax>=0.2.6,<0.3",  # optimisers and schedules
  "orbax-checkpoint>=0.11.18,<0.13",  # training checkpoints
  "clu>=0.0.12,<0.1",  # metrics on the device, TensorBoard writers
  "gin-config>=0.5,<0.6",  # configuration, as in T5X
  "jaxtyping>=0.2.34,<0.4",  # shapes in signatures
  "seqio>=0.0.20,<0.1",  # tasks, vocabularies, feature converters
  # tokenizer.json, all that current releases of transformers write (a wheel of 3 MB;
  # every minor release within the bounds was run)
  "tokenizers>=0.20.3,<0.24",
  # tf.data under seqio. By this name, as tensorflow-text under seqio asks for it:
  # tensorflow-cpu beside it would be a second copy in the same folder.
  "tensorflow>=2.20,<2.22",  # 2.19 holds back protobuf, which TFDS needs newer
  "importlib_resources>=5.12,<8",  # tensorflow-datasets imports it undeclared
  "tensorboard>=2.20,<3",  # clu's summary writer imports it
  "sentencepiece>=0.2.2,<0.3",  # vocabularies; 0.2.1 crashes on a damaged model
  "flatbuffers>=24.3.25,<27",  # programs that jax.export writes
  "safetensors>=0.5,<1",  # weights and prompts that hold no code
  "numpy>=2.0,<3",  # pyarrow under TFDS asks for 2
  "tensorstore>=0.1.71,<0.2",  # arrays of T5X checkpoints
  "msgpack>=1.0.5,<2",  # trees of T5X checkpoints
  "etils[epath]>=1.9,<2",  # paths, local or not
  "tqdm>=4.66,<5",  # progress
  "matplotlib>=3.9,<4",  # learning curves
  "scikit-learn>=1.5,<2",  # classification metrics
  "scipy>=1.13,<2",  # correlations
  "sacrebleu>=2.4,<3",  # BLEU
  "rouge-score>=0.1.2,<0.2",  # ROUGE
]

setup(
  name="prompt-tuning",
  version=VERSION,
  description="Learned prompts, instance-conditioned ones first, for frozen models",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  keywords="prompt tuning, soft prompts, frozen language models, JAX, Flax, T5",
  classifiers=[
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Text Processing :: Linguistic",
    "Typing :: Typed",
  ],
  packages=[*find_packages(include=["prompt_tuning", "prompt_tuning.*"]), *ASSETS],
  package_dir=ASSETS,
  package_data={
    "prompt_tuning": ["py.typed"],
    "prompt_tuning.demo": ["data/*", "mini/*"],
    **{name: ["*.gin", "*.md", "*.sh", "*.py"] for name in ASSETS},
  },
  entry_points={
    "console_scripts": ["prompt-tuning = prompt_tuning.terminal.main:main"],
  },
  install_requires=REQUIRES,
  extras_require={
    "test": [
      "pytest>=8,<10",
      "pytest-xdist>=3.6,<4",
      "ruff>=0.8,<1",
      # Reads annotations for jaxtyping while tests run.
      "beartype>=0.18,<1",
      # Writes the tiny files that tests read (numpy, pyyaml, requests, tqdm).
      "gguf>=0.17,<1",
    ],
    # Quantised weights of GGUF files; it unpacks all types that are read since 0.17.
    "gguf": ["gguf>=0.17,<1"],
    "tpu": ["jax[tpu]>=0.7,<0.11"],
    "cuda": ["jax[cuda12]>=0.7,<0.11"],
    # What T5X, and airio and jestimator which it imports, need beyond the above. The
    # three are on no package index: their repositories go on the path.
    "t5x": [
      "cached_property>=2,<3",
      "fiddle>=0.3,<0.4",
      "grain>=0.2.12,<0.3",
    ],
    # Only for the scripts that make golden numbers; neither use nor tests need them.
    "oracles": ["torch>=2.4,<3", "transformers>=4.46,<6", "peft>=0.13,<1"],
    # Models of the Hugging Face Hub by their ids.
    "hub": ["huggingface_hub>=0.25,<3"],
    # For pytorch_model.bin alone; earlier weights-only loaders had holes.
    "torch": ["torch>=2.6,<3"],
    # Checkpoints of a run in gs://.
    "gcs": ["google-cloud-storage>=2.19,<4"],
    "docs": ["mkdocs>=1.6,<2"],
  },
)
