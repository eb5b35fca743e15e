"""Switches that every family's config has, checked one way."""

from typing import Any

import jax.numpy as jnp

REMAT_POLICIES = ("none", "full", "dots")
WEIGHTS = ("float32", "bfloat16", "int8")
# Of every family; a family may have more.
SWITCHES = (
  "dropout_rate",
  "dtype",
  "weights_dtype",
  "scan_layers",
  "remat_policy",
  "attention",
)


def check(config: Any) -> None:
  """Makes dtypes of a config their names, and checks what all families switch.

  Raises:
    ValueError: for a value that no switch takes.
  """
  kind = type(config).__name__
  object.__setattr__(config, "dtype", jnp.dtype(config.dtype).name)
  if config.weights_dtype is not None:
    object.__setattr__(config, "weights_dtype", _weights(config.weights_dtype, kind))
  if config.remat_policy not in REMAT_POLICIES:
    raise ValueError(
      f"`{kind}.remat_policy` must be one of {REMAT_POLICIES}, got "
      f"{config.remat_policy!r}."
    )
  if not 0 <= config.dropout_rate < 1:
    raise ValueError(
      f"`{kind}.dropout_rate` must be in [0, 1), got {config.dropout_rate}."
    )


def _weights(dtype: Any, kind: str) -> str:
  name = getattr(dtype, "name", getattr(dtype, "__name__", dtype))
  if name not in WEIGHTS:
    raise ValueError(
      f"`{kind}.weights_dtype` must be one of {WEIGHTS} or None, got {dtype!r}."
    )
  return name
