"""Prompts of other libraries, read as products, and products written for them.

A product that reads no input folds to fixed vectors [P H] in front of the encoder's
input; that is what `.npy` files, T5X's prompt branch and PEFT's prompt tuning hold.
"""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from prompt_tuning.core.context import Spec
from prompt_tuning.core.files import whole_folder
from prompt_tuning.core.prompt import Prompt, Together
from prompt_tuning.engine import product
from prompt_tuning.engine.product import Product
from prompt_tuning.interop import t5x
from prompt_tuning.interop.source import UnreadableError
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.sites.inputs import DecoderInput, EncoderInput

BRANCH = "encoder/prompt/prompt/prompt"
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_KINDS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
_NUMPY = b"\x93NUMPY"


def load(path: str | pathlib.Path, task: int | None = None) -> Product:
  """A prompt, whatever wrote it.

  Args:
    path: a `prompt/` folder (or the MODEL_DIR that holds one), an array of numpy
      (upstream's `.npy`, with or without the ending), a T5X checkpoint with a prompt,
      or a folder of PEFT.
    task: number of the task whose prompt is wanted, for PEFT's multitask adapters.

  Returns:
    The prompt. One from elsewhere names no backbone, so only its width is checked.

  Raises:
    ValueError: if it is none of these, damaged, or of a kind that is not supported.
  """
  path = pathlib.Path(path)
  if (path / PEFT_CONFIG).is_file():
    return _product("peft", path, *read_peft(path, task))
  if path.is_file() and path.name != "checkpoint":
    return _product("numpy", path, read_numpy(path))
  ours = (path / "card.json").is_file() or (path / "prompt").is_dir()
  step = None if ours else t5x.find(path)
  if step is None:
    return product.load(path)
  found = t5x.open_source(step).prompts
  if BRANCH not in found:
    raise ValueError(
      f"{str(step)!r} holds no {BRANCH}; beside the backbone it has {sorted(found)}."
    )
  return _product("t5x", step, _checked(found[BRANCH].read(), str(step)))


def read_numpy(path: pathlib.Path) -> np.ndarray:
  """Vectors [P H] of a file in numpy's format; pickled objects are refused."""
  try:
    with path.open("rb") as file:
      if file.read(len(_NUMPY)) != _NUMPY:
        raise ValueError("it is no array of numpy")
      file.seek(0)
      return _checked(np.load(file, allow_pickle=False), str(path))
  except (OSError, EOFError, ValueError) as error:
    raise UnreadableError(f"{str(path)!r} holds no prompt: {error}.") from error


def read_peft(folder: pathlib.Path, task: int | None = None) -> list[np.ndarray]:
  """Encoder vectors [P H] of an adapter of PEFT, and the decoder's where it has some.

  PROMPT_TUNING and P_TUNING (saved as what its encoder made) are tables.
  MULTITASK_PROMPT_TUNING is a shared table times a low-rank one of the task,
  prompt[p h] = shared[p h] * sum_r cols[task p r] rows[task r h] (Wang et al., 2023).
  For sequence-to-sequence models each table has P rows more, meant for the decoder.
  PEFT's forward pass reads them for the last kind alone; for the others they are left
  out.

  Args:
    folder: of the adapter. task: see `load`.

  Raises:
    ValueError: for another kind of adapter, or files that do not fit each other.
  """
  try:
    fields = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    kind, length = fields["peft_type"], int(fields["num_virtual_tokens"])
  except (OSError, KeyError, TypeError, ValueError) as error:
    where = str(folder / PEFT_CONFIG)
    raise UnreadableError(f"{where!r} cannot be read: {error!r}.") from error
  if kind not in PEFT_KINDS:
    raise ValueError(
      f"{str(folder)!r} is an adapter of the type {kind}; {', '.join(PEFT_KINDS)} can "
      "be read."
    )
  weights = folder / PEFT_WEIGHTS
  try:
    tensors = safetensors_numpy.load_file(str(weights))
    table = tensors["prompt_embeddings"]
    if kind == "MULTITASK_PROMPT_TUNING":
      cols, rows = tensors["prefix_task_cols"], tensors["prefix_task_rows"]
      table = table * (cols[_task(task, len(cols))] @ rows[_task(task, len(rows))])
  except UnreadableError:
    raise
  except Exception as error:  # the reader has an exception type of its own
    raise UnreadableError(f"{str(weights)!r} cannot be read: {error!r}.") from error
  if table.ndim != 2 or length < 1 or len(table) not in (length, 2 * length):
    raise UnreadableError(
      f"{str(weights)!r} holds {table.shape}, but {PEFT_CONFIG} says {length} rows."
    )
  both = kind == "MULTITASK_PROMPT_TUNING" and len(table) > length
  parts = [table[:length], table[length:]] if both else [table[:length]]
  return [_checked(part, str(weights)) for part in parts]


def _task(task: int | None, count: int) -> int:
  if task is None and count == 1:
    return 0
  if task is None or not 0 <= task < count:
    raise UnreadableError(f"`task` must be from 0 to {count - 1}, got {task}.")
  return task


def _checked(vectors: np.ndarray, where: str) -> np.ndarray:
  number = np.issubdtype(vectors.dtype, np.floating) or vectors.dtype.name == "bfloat16"
  if vectors.ndim != 2 or not number or not vectors.size:
    raise UnreadableError(
      f"{where!r} holds an array {vectors.dtype} {vectors.shape}; a prompt is [P H] of "
      "floating-point numbers."
    )
  vectors = np.asarray(vectors, np.float32)
  if not np.isfinite(vectors).all():
    raise UnreadableError(f"{where!r} holds numbers that are not finite.")
  return vectors


def _product(
  kind: str,
  path: pathlib.Path,
  encoder_PH: np.ndarray,
  decoder_PH: np.ndarray | None = None,
) -> Product:
  P, H = encoder_PH.shape
  card = {
    "method": "prompt_tuning",
    "source": {"format": kind, "path": path.name},
    "layout": {
      "place": "front",
      "encoder_prompt": P,
      "decoder_prompt": 0 if decoder_PH is None else len(decoder_PH),
    },
    "backbone": {"width": H},
  }
  module, params = _part(encoder_PH, EncoderInput())
  if decoder_PH is not None:
    second, more = _part(decoder_PH, DecoderInput())
    module = Together((module, second))
    params = {"prompts_0": params, "prompts_1": more}
  return Product(module, {"prompt": params}, card)


def _part(vectors_PH: np.ndarray, site: Any) -> tuple[Prompt, dict[str, Any]]:
  params = {"parameterise": {"prompt": vectors_PH[None]}}
  return Prompt(len(vectors_PH), Dense(None), site), params


def fold(prompt: Product) -> np.ndarray:
  """Fixed vectors [P H] in front of the encoder's input that do what the prompt does.

  Raises:
    ValueError: if it reads its input, feeds the decoder, stands elsewhere than in
      front, or is a whole model.
  """
  module, remains = prompt.module, "Keep its `prompt/` folder, which holds all of it."
  if module is None:
    raise ValueError(f"This product is a whole backbone, not a prompt. {remains}")
  if module.reads_input:
    raise ValueError(
      "This prompt reads its input, so no fixed vectors do what it does: numpy, peft "
      f"and t5x cannot hold it. {remains}"
    )
  place = prompt.layout.get("place", "front")
  if set(module.lengths) != {"encoder"} or place != "front":
    raise ValueError(
      f"This prompt stands at {place!r} of {sorted(module.lengths)}, but foreign "
      f"formats put theirs in front of the encoder's input. {remains}"
    )
  params = {**prompt.frozen, **prompt.trainable}.get("prompt", {})
  # Such a prompt looks at nothing of the backbone but its width.
  spec = Spec(prompt.card["backbone"]["width"], 1, 1, 1, 1, 1)
  found = module.apply({"params": params}, None, spec).encoder_input
  return np.asarray(found[0], np.float32)


def write_numpy(path: str | pathlib.Path, prompt: Product) -> None:
  """Writes the vectors as upstream's prompt-tuning reads them."""
  vectors_PH, path = fold(prompt), pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  aside = path.with_name(f".{path.name}.tmp")
  try:
    with aside.open("wb") as file:
      np.save(file, vectors_PH, allow_pickle=False)
    aside.replace(path)
  except BaseException:
    aside.unlink(missing_ok=True)
    raise


def write_peft(
  folder: str | pathlib.Path, prompt: Product, base_model: str | None = None
) -> None:
  """Writes a PROMPT_TUNING adapter of PEFT for a sequence-to-sequence model.

  Args:
    folder: replaced if it exists. prompt: see `fold`.
    base_model: name or folder of the model in Hugging Face's format, for its card.
  """
  vectors_PH = fold(prompt)
  fields: dict[str, Any] = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "SEQ_2_SEQ_LM",
    "base_model_name_or_path": base_model,
    "inference_mode": True,
    "num_virtual_tokens": len(vectors_PH),
    "token_dim": vectors_PH.shape[1],
    # One table: PEFT's forward pass reads none for the decoder.
    "num_transformer_submodules": 1,
    "prompt_tuning_init": "RANDOM",
  }
  with whole_folder(folder) as aside:
    text = json.dumps(fields, indent=2) + "\n"
    (aside / PEFT_CONFIG).write_text(text, encoding="utf-8")
    tensors = {"prompt_embeddings": vectors_PH}
    safetensors_numpy.save_file(tensors, str(aside / PEFT_WEIGHTS))


def write_t5x(
  folder: str | pathlib.Path, prompt: Product, backbone: Any, params: Any
) -> pathlib.Path:
  """Writes backbone and prompt as a legacy T5X checkpoint; returns the step's folder.

  Args:
    folder: of the model. prompt: see `fold`.
    backbone, params: what the prompt was trained on.
  """
  vectors_PH = fold(prompt)
  branch = {"prompt": {"prompt": {"prompt": vectors_PH}}}
  tree = {**params, "encoder": {**params["encoder"], **branch}}
  return t5x.write_legacy(folder, backbone, tree, int(prompt.card.get("step", 0)))
