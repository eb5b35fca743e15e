"""Adapters of Hugging Face's PEFT for sequence-to-sequence models.

PROMPT_TUNING and P_TUNING (saved as what its encoder made) are tables [P H].
MULTITASK_PROMPT_TUNING is a shared table times a low-rank one of the task,
prompt[p h] = shared[p h] * sum_r cols[task p r] rows[task r h] (Wang et al., 2023).
Their tables have P rows more, meant for the decoder. PEFT's forward pass reads them for
the last kind alone; for the others they are left out.

PREFIX_TUNING is a table [P 2L * J] of keys and values. PEFT's forward pass gives the
encoder none of them. It puts two copies behind each other and deals out four entries to
a layer of the decoder: a key and a value for self-attention, and two for
cross-attention, which it then clears. So layer i reads the entries 4i and 4i + 1,
modulo 2L: with an even L, layers i and i + L / 2 share theirs and half of the table is
unused.
"""

import json
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from prompt_tuning.core.folders import whole_folder
from prompt_tuning.interop import tensor_files, untrusted
from prompt_tuning.interop.lazy import UnreadableError
from prompt_tuning.interop.tables import Tables, checked
from prompt_tuning.interop.untrusted import Stated

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TABLES = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
PREFIX = "PREFIX_TUNING"
# The tensor that every kind has.
TABLE = "prompt_embeddings"


def read(folder: pathlib.Path, task: int | None = None) -> Tables:
  """Tables of an adapter.

  Args:
    folder: of the adapter.
    task: number of the task whose prompt is wanted, for multitask adapters.

  Raises:
    ValueError: for another kind of adapter, or files that do not fit each other.
  """
  path = untrusted.inside(folder, CONFIG)
  stated = Stated(untrusted.read_object(path), str(path))
  kind = stated.text("peft_type")
  if kind not in (*TABLES, PREFIX):
    raise ValueError(
      f"{str(folder)!r} is an adapter of the type {kind}; {', '.join(TABLES)} and "
      f"{PREFIX} can be read."
    )
  length = stated.count("num_virtual_tokens", least=1)
  tensors = _Tensors(untrusted.inside(folder, WEIGHTS))
  table = tensors.read(TABLE)
  if kind == "MULTITASK_PROMPT_TUNING":
    table = tensors.of_task(table, task)
  lengths = (length,) if kind == PREFIX else (length, 2 * length)
  if len(table) not in lengths:
    raise UnreadableError(
      f"{tensors.where!r} holds {table.shape}, but {CONFIG} says {length} rows."
    )
  if kind == PREFIX:
    return _read_prefix(table, stated)
  both = kind == "MULTITASK_PROMPT_TUNING" and len(table) > length
  return Tables(table[:length], table[length:] if both else None)


class _Tensors:
  """The tensors of an adapter's weights, each checked when it is read."""

  def __init__(self, path: Any) -> None:
    self.where, self.lazy = str(path), tensor_files.tensors(path)

  def read(self, name: str, rank: int = 2) -> np.ndarray:
    """Finite float32 numbers [P H], or of rank 3, one matrix a task."""
    if name not in self.lazy:
      raise UnreadableError(
        f"{self.where!r} lacks {name}; it holds {sorted(self.lazy)[:8]}."
      )
    found = self.lazy[name]
    if len(found.shape) != rank:
      raise UnreadableError(f"{self.where!r} holds {name} {found.shape}.")
    rows = found.read().reshape(-1, found.shape[-1] if found.shape[-1] else 1)
    return checked(rows, self.where, name).reshape(found.shape)

  def of_task(self, table: np.ndarray, task: int | None) -> np.ndarray:
    """A shared table [P H] times the low-rank one of a task."""
    cols = self.read("prefix_task_cols", 3)
    rows = self.read("prefix_task_rows", 3)
    (tasks, P, R), H = cols.shape, table.shape[1]
    if P != len(table) or rows.shape != (tasks, R, H):
      raise UnreadableError(
        f"{self.where!r} holds prefix_task_cols {cols.shape} and prefix_task_rows "
        f"{rows.shape} for a table {table.shape}."
      )
    number = _task(task, tasks)
    with np.errstate(over="ignore", invalid="ignore"):
      found = table * (cols[number] @ rows[number])
    return checked(found, self.where, f"{TABLE} times the task's factors")


def _task(task: int | None, count: int) -> int:
  if task is None and count == 1:
    return 0
  if task is None or not 0 <= task < count:
    raise UnreadableError(f"`task` must be from 0 to {count - 1}, got {task}.")
  return task


def _read_prefix(table: np.ndarray, stated: Stated) -> Tables:
  names = ("num_layers", "token_dim", "num_attention_heads")
  L, J, heads = (stated.count(name, least=1) for name in names)
  if J % heads or table.shape[1] != 2 * L * J:
    raise UnreadableError(
      f"{stated.where!r} says {L} layers, {heads} heads and a width of {J}, but the "
      f"table is {table.shape}."
    )
  submodules = stated.fields.get("num_transformer_submodules", 2)
  if submodules != 2:
    raise UnreadableError(
      f"{stated.where!r} says num_transformer_submodules = {reprlib.repr(submodules)}; "
      "a prefix of a T5 needs 2."
    )
  entries_GPJ = table.reshape(len(table), 2 * L, J).swapaxes(0, 1)
  return Tables(decoder_GPJ=entries_GPJ[_entries(L)], heads=heads)


def _entries(L: int) -> np.ndarray:
  """The entry of PEFT's table that each of our 2L tables is."""
  layers = 4 * np.arange(L)
  return np.stack([layers, layers + 1], axis=1).reshape(-1) % (2 * L)


def write_prompt(
  folder: str | pathlib.Path, vectors_PH: np.ndarray, base_model: str | None = None
) -> None:
  """Writes a PROMPT_TUNING adapter.

  Args:
    folder: see `core.folders.whole_folder`.
    vectors_PH: in front of the encoder's input.
    base_model: name or folder of the model in Hugging Face's format, for its card.
  """
  fields = {
    "peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": len(vectors_PH),
    "token_dim": vectors_PH.shape[1],
    # One table: PEFT's forward pass reads none for the decoder.
    "num_transformer_submodules": 1,
    "prompt_tuning_init": "RANDOM",
  }
  _write(folder, fields, vectors_PH, base_model)


def write_prefix(
  folder: str | pathlib.Path,
  kv_GPJ: np.ndarray,
  heads: int,
  base_model: str | None = None,
) -> None:
  """Writes a PREFIX_TUNING adapter.

  Args:
    folder: see `core.folders.whole_folder`.
    kv_GPJ: keys and values of the decoder's layers. heads: N.
    base_model: see `write_prompt`.

  Raises:
    ValueError: if layers that PEFT gives one entry have different keys or values.
  """
  G, P, J = kv_GPJ.shape
  entries = _entries(G // 2)
  table_GPJ = np.zeros_like(kv_GPJ)
  table_GPJ[entries] = kv_GPJ
  if not np.array_equal(table_GPJ[entries], kv_GPJ):
    raise ValueError(
      f"PEFT gives layers i and i + {G // 4} of a decoder of {G // 2} one and the same "
      "prefix, and those of this prompt differ. Keep its `prompt/` folder, which holds "
      "all of it."
    )
  fields = {
    "peft_type": PREFIX,
    "num_virtual_tokens": P,
    "token_dim": J,
    "num_transformer_submodules": 2,
    "num_attention_heads": heads,
    "num_layers": G // 2,
    "encoder_hidden_size": J,
    "prefix_projection": False,
  }
  table = np.ascontiguousarray(table_GPJ.swapaxes(0, 1)).reshape(P, G * J)
  _write(folder, fields, table, base_model)


def _write(
  folder: str | pathlib.Path,
  fields: Mapping[str, Any],
  table: np.ndarray,
  base_model: str | None,
) -> None:
  common = {
    "task_type": "SEQ_2_SEQ_LM",
    "base_model_name_or_path": base_model,
    "inference_mode": True,
  }
  with whole_folder(folder) as aside:
    text = json.dumps({**common, **fields}, indent=2) + "\n"
    (aside / CONFIG).write_text(text, encoding="utf-8")
    tensors = {TABLE: table}
    safetensors_numpy.save_file(tensors, str(aside / WEIGHTS))
