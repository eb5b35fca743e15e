"""Prompts of other libraries, read as products, and products written for them.

A product that reads no input folds to fixed vectors [P H] in front of the encoder's
input; that is what `.npy` files, T5X's prompt branch and PEFT's prompt tuning hold.
Keys and values of the decoder's layers are what PEFT's prefix tuning holds.
"""

import io
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import files
from prompt_tuning.core.context import Spec
from prompt_tuning.core.folders import current
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.prompt import Prompt, Together
from prompt_tuning.engine import product
from prompt_tuning.engine.product import Product
from prompt_tuning.interop import peft, t5x
from prompt_tuning.interop.source import UnreadableError
from prompt_tuning.interop.tables import Tables, checked
from prompt_tuning.parameterisers.dense import Dense

BRANCH = "encoder/prompt/prompt/prompt"
REMAINS = (
  "Its `prompt/` folder holds all of it; stablehlo and savedmodel hold it beside its "
  "backbone."
)
_NUMPY = b"\x93NUMPY"


def load(path: Any, task: int | None = None) -> Product:
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
  path = files.at(path)
  if files.is_remote(path):
    try:
      path.exists()
    except Exception as error:  # whatever the client of that place raises
      raise ValueError(f"{str(path)!r} cannot be reached: {error}") from error
  ours = current(path, product.CARD).is_file()
  if not ours and (path / peft.CONFIG).is_file():
    return _product("peft", path, peft.read(path, task))
  if path.is_file() and path.name != "checkpoint":
    return _product("numpy", path, Tables(read_numpy(path)))
  ours = ours or (path / "prompt").is_dir()
  step = None if ours else t5x.find(path)
  if step is None:
    return product.load(path)
  found = t5x.open_source(step).prompts
  if BRANCH not in found:
    raise ValueError(
      f"{str(step)!r} holds no {BRANCH}; beside the backbone it has {sorted(found)}."
    )
  return _product("t5x", step, Tables(checked(found[BRANCH].read(), str(step), BRANCH)))


def read_numpy(path: pathlib.Path) -> np.ndarray:
  """Vectors [P H] of a file in numpy's format; pickled objects are refused."""
  try:
    with path.open("rb") as file:
      if file.read(len(_NUMPY)) != _NUMPY:
        raise ValueError("it is no array of numpy")
      file.seek(0)
      _check_length(file)
      return checked(np.load(file, allow_pickle=False), str(path))
  except Exception as error:  # numpy parses its header as Python, with its errors
    raise UnreadableError(f"{str(path)!r} holds no prompt: {error}.") from error


def _check_length(file: Any) -> None:
  """Refuses a header that claims more than the file holds; goes back to the start."""
  form = np.lib.format
  first = form.read_magic(file) == (1, 0)
  read_header = form.read_array_header_1_0 if first else form.read_array_header_2_0
  shape, _, dtype = read_header(file)
  start = file.tell()
  claimed, there = math.prod(shape) * dtype.itemsize, file.seek(0, 2) - start
  if not dtype.hasobject and claimed > there:
    raise ValueError(f"its header claims {claimed:,} bytes, and {there:,} follow")
  file.seek(0)


def _product(kind: str, path: pathlib.Path, tables: Tables) -> Product:
  parts = []
  if tables.encoder_PH is not None:
    parts.append((tables.encoder_PH[None], "encoder.input"))
  if tables.decoder_PH is not None:
    parts.append((tables.decoder_PH[None], "decoder.input"))
  if tables.decoder_GPJ is not None:
    parts.append((tables.decoder_GPJ, "decoder.kv"))
  modules = [Prompt(table.shape[1], Dense(None), site) for table, site in parts]
  params = [{"parameterise": {"prompt": table}} for table, _ in parts]
  module, branch = modules[0], params[0]
  if len(modules) > 1:
    module = Together(tuple(modules))
    branch = {f"prompts_{i}": own for i, own in enumerate(params)}
  lengths = module.lengths
  card = {
    "method": "prompt_tuning" if lengths else "prefix_tuning_decoder",
    "source": {"format": kind, "path": path.name},
    "layout": {
      "place": "front",
      "encoder_prompt": lengths.get("encoder", 0),
      "decoder_prompt": lengths.get("decoder", 0),
    },
    "backbone": tables.backbone,
  }
  return Product(module, {"prompt": branch}, card)


def fold(prompt: Product) -> np.ndarray:
  """Fixed vectors [P H] in front of the encoder's input that do what the prompt does.

  Raises:
    ValueError: if it reads its input, feeds the decoder, stands elsewhere than in
      front, hides some of its positions, or is a whole model.
  """
  found = fixed(prompt)
  place = prompt.layout.get("place", "front")
  if found.places != {"encoder.input"} or place != "front":
    raise ValueError(
      f"This prompt stands at {place!r} of {sorted(found.places)}, but numpy, t5x and "
      f"PEFT's prompt tuning hold vectors in front of the encoder's input. {REMAINS}"
    )
  slots = found.get("encoder.input")
  if slots.mask is not None and not np.all(slots.mask):
    hidden = int((~np.asarray(slots.mask[0])).sum())
    raise ValueError(
      f"This prompt hides {hidden} of its positions from attention, which an array of "
      f"vectors cannot say. {REMAINS}"
    )
  return np.asarray(slots.vectors[0], np.float32)


def fixed(prompt: Product) -> Injection:
  """What a prompt hands back, whatever the input.

  Raises:
    ValueError: if it reads its input, or is a whole model.
  """
  if prompt.module is None:
    raise ValueError(f"This product is a whole backbone, not a prompt. {REMAINS}")
  if prompt.head is not None:
    raise ValueError(
      "This prompt answers by a head, which numpy, peft and t5x cannot hold beside it. "
      f"{REMAINS}"
    )
  if prompt.module.reads_input:
    raise ValueError(
      "This prompt reads its input, so no fixed vectors do what it does: numpy, peft "
      f"and t5x cannot hold it{_but_a_task(prompt)}. {REMAINS}"
    )
  if "table" in prompt.module.needs:
    raise ValueError(
      "This prompt is made of rows of its backbone's token table, which the product "
      f"does not hold. {REMAINS}"
    )
  return handed(prompt, None)


def _but_a_task(prompt: Product) -> str:
  if prompt.module.reads_text:
    return ""
  return ", but what it does for one task (`task`, or --task)"


def handed(prompt: Product, context: Any) -> Injection:
  """What a prompt hands back for a context, or None where it reads none.

  Raises:
    ValueError: if the card does not say the sizes of its backbone.
  """
  params = {**prompt.frozen, **prompt.trainable}.get("prompt", {})
  backbone = prompt.card.get("backbone") or {}
  sizes = backbone.get("architecture") or {}
  spec = _sizes(backbone.get("width") or 1, sizes)
  try:
    return prompt.module.apply({"params": params}, context, spec)
  except ValueError as error:
    if sizes and backbone.get("width"):
      raise
    raise ValueError(
      "The prompt's card does not say the width and the architecture of its backbone, "
      "which this format needs. Train it with this library, or fill in the card's "
      '"backbone" from that of another prompt of the same backbone.'
    ) from error


def _sizes(width: int, stated: Mapping[str, Any]) -> Spec:
  """All that such a prompt looks at; what a card does not state, it does not need."""
  names = "num_heads head_dim mlp_dim num_encoder_layers num_decoder_layers".split()
  sizes = {name: stated.get(name, 1) for name in names}
  if not all(type(size) is int and 0 < size < 1 << 20 for size in sizes.values()):
    raise ValueError(f"The prompt's card states a backbone of the sizes {sizes}.")
  return T5(T5Config(vocab_size=1, emb_dim=width, **sizes)).spec


def write_peft(
  folder: str | pathlib.Path, prompt: Product, base_model: str | None = None
) -> None:
  """Writes an adapter of PEFT: PROMPT_TUNING, or PREFIX_TUNING of the decoder.

  Args:
    folder: see `core.folders.whole_folder`. prompt: see `fold` and `peft.write_prefix`.
    base_model: name or folder of the model in Hugging Face's format, for its card.
  """
  found = fixed(prompt)
  if found.places != {"decoder.kv"}:
    peft.write_prompt(folder, fold(prompt), base_model)
    return
  heads = prompt.card["backbone"]["architecture"]["num_heads"]
  table_GPJ = np.asarray(found.get("decoder.kv").vectors[0])
  peft.write_prefix(folder, table_GPJ, heads, base_model)


def write_numpy(path: str | pathlib.Path, prompt: Product) -> None:
  """Writes the vectors as upstream's prompt-tuning reads them.

  Raises:
    ValueError: if the file exists with other content: an array says nothing of who
      wrote it.
  """
  vectors_PH, written = fold(prompt), io.BytesIO()
  np.save(written, vectors_PH, allow_pickle=False)
  data = written.getvalue()
  files.write_bytes(path, data, lambda there: files.head(there, len(data) + 1) == data)


def write_t5x(
  folder: str | pathlib.Path,
  prompt: Product,
  backbone: Any,
  params: Any,
  write: Callable[..., pathlib.Path] = t5x.write_legacy,
) -> pathlib.Path:
  """Writes backbone and prompt as a T5X checkpoint; returns the step's folder.

  Args:
    folder: of the model. prompt: see `fold`.
    backbone, params: what the prompt was trained on.
    write: `t5x.write_legacy` or `t5x.write_orbax`.
  """
  vectors_PH = fold(prompt)
  branch = {"prompt": {"prompt": {"prompt": vectors_PH}}}
  tree = {**params, "encoder": {**params["encoder"], **branch}}
  return write(folder, backbone, tree, int(prompt.card.get("step", 0)))
