"""What a run leaves to read: model-info.txt and the learning curve."""

import io
from typing import Any

import jax

from prompt_tuning.core import files
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import curves, records, sharding
from prompt_tuning.engine.ready import Places, Ready
from prompt_tuning.engine.recipe import Recipe


def model_info(folder: Any, ready: Ready) -> None:
  """Writes model-info.txt, see `info_text`."""
  text = info_text(
    ready.model, ready.params, ready.recipe, ready.transform, ready.place, ready.places
  )
  files.write_text(folder / "model-info.txt", text)


def info_text(
  model: PromptedModel,
  params: Any,
  recipe: Recipe,
  transform: Any,
  place: sharding.Placement,
  places: Places,
) -> str:
  """Every array of a run: kind, shape, dtype, axes, sharding, bytes on one device.

  Args:
    model, params, recipe, transform, place, places: see `engine.Ready`; shapes do
      for parameters.
  """
  trains, frozen = branches.split(params, recipe.trainable)
  trains = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), trains)
  axes = model.logical_axes(params)
  rows = [("frozen", *row) for row in _rows(frozen, places.frozen, axes)]
  rows += [("trains", *row) for row in _rows(trains, places.trainable, axes)]
  rows.sort(key=lambda row: row[1])
  if transform is not None:
    slots = jax.eval_shape(transform.init, trains)
    rows += [("slot", *row) for row in _slots(slots, places.state.optimizer)]
  held = {kind: 0 for kind in ("frozen", "trains", "slot")}
  for kind, *_, size in rows:
    held[kind] += size
  head = [
    f"parameters {branches.count(params):,}, of which {branches.count(trains):,} train",
    f"virtual positions {model.lengths or 'none'}",
    f"mesh {place.describe()}; rows of a batch in {place.rows} parts",
    f"bytes a device: frozen {held['frozen']:,}, trains {held['trains']:,}, "
    f"optimiser slots {held['slot']:,}",
    "",
  ]
  lines = [
    f"{kind}  {name}  [{'x'.join(map(str, leaf.shape)) or 'scalar'}]  {leaf.dtype}  "
    f"{named}  {tuple(jax.tree.leaves(where)[0].spec) or 'whole'}  {size:,} bytes a "
    "device"
    for kind, name, leaf, named, where, size in rows
  ]
  return "\n".join([*head, *lines]) + "\n"


def _rows(tree: Any, places: Any, axes: Any) -> list[tuple]:
  where = branches.flatten(places)
  return [
    (
      name,
      leaf,
      axes.get(name, ()),
      where[name],
      sharding.bytes_per_device(leaf, where[name]),
    )
    for name, leaf in branches.flatten(tree).items()
  ]


def _slots(slots: Any, places: Any) -> list[tuple]:
  found = jax.tree_util.tree_leaves_with_path(slots)
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf, (), place, size)
    for (path, leaf), place in zip(found, jax.tree.leaves(places), strict=True)
    if (size := sharding.bytes_per_device(leaf, place))
  ]


def learning_curve(folder: Any) -> None:
  """Draws learning-curve.png from metrics.jsonl, if there is anything to draw."""
  path = folder / "metrics.jsonl"
  if not path.is_file():
    return
  figure = curves.figure([line for _, line in records.read_lines(path)[0]])
  if figure is None:
    return
  drawn = io.BytesIO()
  figure.savefig(drawn, dpi=120, format="png")
  files.write_bytes(folder / "learning-curve.png", drawn.getvalue())
