"""The parameters that a phase starts from, made of earlier products.

Shapes, widths and fingerprints are compared by what cards say, before any number of a
product is read.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prompt_tuning.core import describe, files
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.folders import current
from prompt_tuning.engine import card as cards
from prompt_tuning.engine import product
from prompt_tuning.procedures import surgery


class Products:
  """Products by what a start calls them: phases of this run, and folders.

  Attributes:
    phases: name -> folder of its product.
    fingerprint, spec: of the backbone that they must fit.
  """

  def __init__(self, phases: Mapping[str, Any], fingerprint: str, spec: Any) -> None:
    self.phases, self.fingerprint, self.spec = dict(phases), fingerprint, spec
    self._cards: dict[str, dict[str, Any]] = {}

  def folder(self, owner: str) -> Any:
    """Where a product lies.

    Raises:
      ValueError: if there is no such phase or folder.
    """
    if owner in self.phases:
      return self.phases[owner]
    folder = files.at(owner)
    for place in (folder, folder / "prompt"):
      if current(place, product.CARD).is_file():
        return place
    raise ValueError(
      f"A phase starts from {owner!r}, which is no earlier phase of this run (there "
      f"are {sorted(self.phases)}) and no folder with a product."
    )

  def card(self, owner: str) -> dict[str, Any]:
    """Its card, which must be of this backbone.

    Raises:
      ValueError: for another backbone, or a damaged card.
    """
    if owner not in self._cards:
      folder = self.folder(owner)
      found = cards.read(current(folder, product.CARD), product.FORMAT)
      made = product.Product(None, {}, found)
      try:
        made.check(self.fingerprint, self.spec.width)
      except ValueError as error:
        raise ValueError(f"A phase starts from {str(folder)!r}. {error}") from error
      self._cards[owner] = found
    return self._cards[owner]

  def opened(self, owner: str) -> product.Product:
    """The whole product, of this backbone."""
    self.card(owner)
    return product.load(self.folder(owner))

  def shapes(self, reference: str) -> Any:
    """Shapes of what a reference names, by the card alone.

    Raises:
      ValueError: if the product holds nothing of that path.
    """
    owner, path = surgery.place(reference)
    if path == surgery.FOLDED:
      module = describe.rebuild(self.card(owner)["module"])
      if module is None or module.reads_input or set(module.lengths) != {"encoder"}:
        raise ValueError(
          f"`Fold` names {owner!r}, whose prompt reads its input or stands elsewhere "
          "than in the encoder's input: no fixed vectors do what it does."
        )
      shape = (1, module.lengths["encoder"], self.spec.width)
      return jax.ShapeDtypeStruct(shape, "float32")
    stated = self.card(owner)["shapes"]
    flat = {
      name: jax.ShapeDtypeStruct(tuple(shape), "float32")
      for name, shape in stated.items()
    }
    return _below(flat, path, reference)

  def values(self, reference: str) -> Any:
    """What a reference names, read."""
    owner, path = surgery.place(reference)
    made = product.load(self.folder(owner))
    if path == surgery.FOLDED:
      return self._folded(made, owner)
    flat = {**branches.flatten(made.frozen), **branches.flatten(made.trainable)}
    return _below(flat, path, reference)

  def _folded(self, made: product.Product, owner: str) -> np.ndarray:
    held = {**made.frozen, **made.trainable}.get("prompt", {})
    injection = made.module.apply({"params": held}, None, self.spec)
    slots = injection.get("encoder.input")
    if slots is None or injection.places != {"encoder.input"}:
      raise ValueError(
        f"`Fold` names {owner!r}, whose prompt stands at {sorted(injection.places)} "
        "and not in the encoder's input alone."
      )
    if slots.mask is not None and not np.all(slots.mask):
      raise ValueError(
        f"`Fold` names {owner!r}, some positions of which are hidden: a table of fixed "
        "vectors hides none. Copy its branches with their mask instead."
      )
    return np.asarray(slots.vectors, np.float32)


def _below(flat: Mapping[str, Any], path: str, reference: str) -> Any:
  found = {name: leaf for name, leaf in flat.items() if branches.within(name, path)}
  if not found:
    tops = sorted({"/".join(name.split("/")[:3]) for name in flat})
    raise ValueError(
      f"A phase starts from {reference!r}, but that product holds no {path!r}. "
      f"It holds {tops[:8]}."
    )
  if path in found:
    return found[path]
  return branches.unflatten({name[len(path) + 1 :]: x for name, x in found.items()})


def check(
  start: Mapping[str, Any], products: Products, targets: Mapping[str, Any], phase: str
) -> None:
  """Refuses a start whose shapes do not fit; reads cards alone.

  Args:
    start: see `procedures.phase.Phase`. products: what it reads.
    targets: path -> leaf, or its shape, of all parameters of the phase.
    phase: its name.

  Raises:
    ValueError: naming phase, path, shapes and the fix.
  """
  for target, expression in start.items():
    held = {one: products.shapes(one) for one in surgery.reads(expression)}
    made = jax.eval_shape(lambda held, e=expression: surgery.evaluated(e, held), held)
    if made is None:
      continue
    wanted = {p: x for p, x in targets.items() if branches.within(p, target)}
    if not wanted:
      tops = sorted({"/".join(path.split("/")[:3]) for path in targets})
      raise ValueError(
        f"The phase {phase!r} starts its branch {target!r}, which it does not have. It "
        f"has {tops[:8]}."
      )
    found = _flat(target, made)
    for path in sorted({*wanted, *found}):
      there = getattr(found.get(path), "shape", "nothing")
      shape = getattr(wanted.get(path), "shape", "nothing")
      if there != shape:
        raise ValueError(
          f"The phase {phase!r} starts {path!r} from {expression!r}, which gives "
          f"{there} where {shape} is needed. Start it from a product of the same "
          "method, length and backbone, or change its shape (procedures/surgery.py)."
        )


def values(start: Mapping[str, Any], products: Products) -> dict[str, np.ndarray]:
  """Path -> array of every leaf that a start gives; see `check`.

  Where targets lie in each other, the longest decides.
  """
  found: dict[str, np.ndarray] = {}
  for target, expression in sorted(start.items(), key=lambda item: len(item[0])):
    held = {one: products.values(one) for one in surgery.reads(expression)}
    made = surgery.evaluated(expression, held)
    if made is not None:
      found.update({k: np.asarray(v) for k, v in _flat(target, made).items()})
  return found


def begun(params: Any, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters with some leaves put in place of those that were drawn."""
  flat = branches.flatten(params)
  for path, value in given.items():
    dtype = flat[path].dtype if path in flat else value.dtype
    flat[path] = jax.numpy.asarray(value, dtype)
  return branches.unflatten(flat)


def _flat(target: str, made: Any) -> dict[str, Any]:
  if not isinstance(made, Mapping):
    return {target: made}
  return {f"{target}/{name}": leaf for name, leaf in branches.flatten(made).items()}
