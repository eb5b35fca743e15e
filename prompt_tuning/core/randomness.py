"""Which kinds of noise the words of a prompt draw while training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

DROPOUT = "dropout"


def streams(part: Any) -> frozenset[str]:
  """Names of Flax's streams of keys that some word of a prompt reads.

  A word with a dropout rate above 0 reads "dropout"; others say so in a class variable
  `noise`, such as ("sample",), and get their key from `make_rng("sample")`.
  """
  if isinstance(part, (list, tuple)):
    return frozenset().union(*map(streams, part))
  if isinstance(part, Mapping):
    return frozenset().union(*map(streams, part.values()))
  if not dataclasses.is_dataclass(part) or isinstance(part, type):
    return frozenset()
  found = frozenset(getattr(part, "noise", ()))
  for field in dataclasses.fields(part):
    if field.name in ("parent", "name"):
      continue
    value = getattr(part, field.name)
    if field.name.endswith("dropout_rate") and value:
      found |= {DROPOUT}
    found |= streams(value)
  return found
