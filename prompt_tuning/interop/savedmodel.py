"""A frozen model with its prompt as a SavedModel of TensorFlow.

The programs are those of `serving_export`, each an XlaCallModule over its StableHLO
module: one for all platforms, B and T free, weights as variables. That is what jax2tf
makes too, but jax2tf leaves no choice of StableHLO's version, and writes one that
TensorFlow's last release cannot read yet. Signatures:

  generate, choose     ids in, ids or scores out
  predict, classify    texts in, texts out, where the tokeniser can be inside: that of
                       SentencePiece needs tensorflow_text (here, and imported wherever
                       the SavedModel is loaded), bytes need nothing

Texts are the argument `text`, or one for each column of the prompt's template.
`serving_default` is `classify`, else `predict`, else `choose`, else `generate`.
card.json says which there are, with their shapes.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.interpreters import mlir
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import stablehlo

from prompt_tuning.core import folders
from prompt_tuning.data.task import MARK
from prompt_tuning.interop import serving_export, serving_reads
from prompt_tuning.interop.savedmodel_words import Tensor, Tokeniser, tokeniser
from prompt_tuning.interop.serving import ROUND
from prompt_tuning.interop.serving_programs import Servable
from prompt_tuning.interop.serving_reads import Reads

# What every TensorFlow that setup.py allows can read; older ones lack operations.
STABLEHLO = "1.8.0"
ALWAYS = ("card.json", "saved_model.pb", "fingerprint.pb")
BY_DEFAULT = ("classify", "predict", "choose", "generate")


def write(folder: str | pathlib.Path, made: Servable) -> None:
  """Writes the SavedModel; see `core.folders.whole_folder`.

  Raises:
    ValueError: if TensorFlow is missing.
  """
  try:
    import tensorflow as tf
  except ImportError as error:
    raise ValueError(
      f"A SavedModel needs TensorFlow: {error}. Use --to=stablehlo, which does not."
    ) from error
  if made.model.head is not None:
    raise ValueError(
      "The prompt answers by a head, which no SavedModel is written of. Export it with "
      "--to=stablehlo."
    )
  folders.check(folder, expected=ALWAYS)  # before what takes minutes
  said, model = serving_export.vocabulary(made.vocabulary)
  words = tokeniser(made.vocabulary)
  module = tf.Module()
  module.arrays = [
    tf.Variable(np.asarray(value), trainable=False, name=name)
    for name, value in made.weights.items()
  ]
  module.resource = None if words is None else words.resource
  functions = {}
  for name, program in serving_export.lower(made).items():
    functions[name] = _ids_function(program, made, module.arrays)
    if words is not None:
      verb = {"generate": "predict", "choose": "classify"}[name]
      functions[verb] = _text_function(functions[name], made, words)
  module.functions = functions
  default = next(name for name in BY_DEFAULT if name in functions)
  concrete = {name: fn.get_concrete_function() for name, fn in functions.items()}
  with folders.whole_folder(folder) as aside:
    signatures = {**concrete, "serving_default": concrete[default]}
    tf.saved_model.save(module, str(aside), signatures=signatures)
    if model is not None:
      (aside / said["file"]).write_bytes(model)
    card = {"kind": "savedmodel", **made.card, "vocabulary": said}
    card["tensorflow"] = tf.__version__
    card["tokenizer"] = _where(words, said)
    card["columns"] = arguments(serving_reads.of(made.card))
    card["signatures"] = {name: _interface(fn) for name, fn in concrete.items()}
    card["serving_default"] = default
    serving_export.write_card(aside, card)


def _where(words: Tokeniser | None, said: Mapping[str, str] | None) -> str:
  """What the card says of the tokeniser."""
  if words is None and said is not None and said["kind"] == "tokenizers":
    return "outside: ids in, ids out (no graph can hold a tokenizer.json)"
  if words is None:
    return "outside: ids in, ids out (tensorflow_text was missing at export)"
  if words.resource is None:
    return "inside: texts in, texts out"
  return "inside: texts in, texts out; import tensorflow_text before loading"


def _ids_function(program: export.Exported, made: Servable, arrays: list[Any]) -> Any:
  """A program as a tf.function of its features."""
  import tensorflow as tf
  from tensorflow.compiler.tf2xla.python import xla

  module = plain(program.mlir_module_serialized)
  results = jax.tree.unflatten(program.out_tree, program.out_avals)

  def run(*features: Tensor) -> dict[str, Tensor]:
    # Names in order, the weights in front: a program's arguments and results.
    values = xla.call_module(
      [*arrays, *features],
      version=program.calling_convention_version,
      module=module,
      Tout=[np.dtype(leaf.dtype) for leaf in program.out_avals],
      Sout=[_free(leaf.shape) for leaf in program.out_avals],
      platforms=[name.upper() for name in program.platforms],
    )
    return dict(zip(sorted(results), values, strict=True))

  return tf.function(run, input_signature=_specs(made.symbols()), autograph=False)


def plain(module: bytes) -> bytes:
  """A StableHLO module that TensorFlow can read and give its shapes.

  TensorFlow gives none to composite operations (`top_k` of beam search is one); they
  become calls of the functions that say the same.
  """
  stablehlo.register_stablehlo_passes()
  with mlir.make_ir_context():
    parsed = ir.Module.parse(stablehlo.deserialize_portable_artifact_str(module))
    passes = "builtin.module(func.func(stablehlo-legalize-composite-to-call))"
    passmanager.PassManager.parse(passes).run(parsed.operation)
    return stablehlo.serialize_portable_artifact(parsed, STABLEHLO)


def _free(shape: Sequence[Any]) -> list[int | None]:
  """A shape with None for its symbols."""
  return [n if isinstance(n, int) else None for n in shape]


def _specs(symbols: Mapping[str, Any]) -> list[Any]:
  import tensorflow as tf

  return [
    tf.TensorSpec(_free(leaf.shape), np.dtype(leaf.dtype), name)
    for name, leaf in symbols.items()
  ]


def _text_function(ids_function: Any, made: Servable, words: Tokeniser) -> Any:
  """A program as a tf.function of texts (and of vectors, where the prompt reads some).

  Texts go through the prompt's template, and are cut where training cut them.

  Texts are padded to a multiple of `ROUND`, so that few shapes are compiled.
  """
  import tensorflow as tf

  names, labels = list(made.symbols()), made.settings.labels
  rest = {n: x for n, x in made.symbols().items() if n not in ("inputs", "mark")}
  reads = serving_reads.of(made.card)
  columns = arguments(reads)

  def run(*given: Tensor) -> dict[str, Tensor]:
    texts, more = given[: len(columns)], given[len(columns) :]
    text = _filled(dict(zip(columns.values(), texts, strict=True)), reads)
    features = {**dict(zip(rest, more, strict=True)), **_features(text, made, words)}
    found = ids_function(*[features[name] for name in names])
    if "scores" in found:
      best = tf.argmax(found["scores"], axis=1)
      return {"prediction": tf.gather(tf.constant(labels), best), **found}
    ids, log_probability = found["ids"], found["log_probability"]
    if ids.shape.rank == 3:
      ids, log_probability = ids[:, 0], log_probability[:, 0]
    # The loops write nothing behind an end mark.
    marks = reads.marks
    kept = tf.ragged.boolean_mask(ids, marks.is_real(ids) & (ids != marks.end))
    return {"prediction": words.decode(kept), "log_probability": log_probability}

  signature = [tf.TensorSpec([None], tf.string, name) for name in columns]
  return tf.function(run, input_signature=[*signature, *_specs(rest)], autograph=False)


def arguments(reads: Reads) -> dict[str, str]:
  """Argument -> column: `text`, or one for each where the template has several."""
  if len(reads.columns) < 2:
    return {"text": next(iter(reads.columns), "text")}
  named: dict[str, str] = {}
  for column in reads.columns:
    # TensorFlow takes names of Python.
    name = re.sub(r"\W", "_", column, flags=re.ASCII)
    name = name if re.match("[A-Za-z]", name) else f"column_{name}"
    while name in named or name in ("external", "mark", "task"):
      name += "_"
    named[name] = column
  return named


def _filled(texts: Mapping[str, Tensor], reads: Reads) -> Tensor:
  """Whole inputs [B] of the texts [B] of each column: `Reads.text` in a graph."""
  import tensorflow as tf

  if reads.template is None:
    return texts["text"]
  message = f"A text holds {MARK}, which only the prompt's template may hold."
  held = [tf.strings.regex_full_match(x, f"(?s).*{MARK}.*") for x in texts.values()]
  free = tf.debugging.Assert(~tf.reduce_any(tf.stack(held)), [message])
  with tf.control_dependencies([free]):
    pieces = [
      tf.identity(texts[text]) if kind == serving_reads.COLUMN else text
      for kind, text in reads.template
    ]
    return tf.strings.join(pieces)


def _features(text: Tensor, made: Servable, words: Tokeniser) -> dict[str, Tensor]:
  """Ids [B T] of texts [B], and their marks [B]: `data.task.split_mark` in a graph."""
  import tensorflow as tf

  parts = tf.strings.split(text, MARK, maxsplit=1)
  found = parts.row_lengths() > 1
  before = tf.strings.strip(parts[:, :1].flat_values)
  after = tf.strings.strip(tf.gather(parts.flat_values, parts.row_limits() - 1))
  joined = tf.strings.strip(tf.strings.join([before, after], " "))
  ids = words.encode(tf.where(found, joined, text))
  features = {"inputs": _rows(ids, serving_reads.of(made.card))}
  if made.card["place"] == "mark":
    message = f"This prompt stands where {MARK} is written; a text holds none."
    marked = tf.debugging.Assert(tf.reduce_all(found), [message])
    with tf.control_dependencies([marked]):
      features["mark"] = tf.cast(words.encode(before).row_lengths(), tf.int32)
  return features


def _rows(ids: Any, reads: Reads) -> Tensor:
  """Padded rows [B T] of ragged ids: `Reads.whole` in a graph."""
  import tensorflow as tf

  pad = reads.marks.pad
  ids = ids if reads.most is None else ids[:, : reads.most - 1]
  if reads.closed:
    end = tf.fill([ids.nrows(out_type=tf.int32), 1], reads.marks.end)
    ids = tf.concat([ids, tf.RaggedTensor.from_tensor(end)], axis=1)
  longest = tf.maximum(tf.reduce_max(ids.row_lengths()), 1)
  width = -(-longest // ROUND) * ROUND
  rows = ids.to_tensor(pad, shape=[None, None])
  short = tf.cast(width, tf.int32) - tf.shape(rows)[1]
  return tf.pad(rows, [[0, 0], [0, short]], constant_values=pad)


def _interface(function: Any) -> dict[str, Any]:
  """Arguments and results of a concrete function: dtypes, and shapes with None."""

  def said(leaf: Any) -> dict[str, Any]:
    return {"dtype": leaf.dtype.name, "shape": leaf.shape.as_list()}

  arguments = function.structured_input_signature[0]
  return {
    "arguments": {leaf.name: said(leaf) for leaf in arguments},
    "results": {key: said(x) for key, x in function.structured_outputs.items()},
  }
