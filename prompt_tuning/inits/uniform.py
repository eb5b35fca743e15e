"""Uniform draws, one-sided or not: the papers say one and the code did the other."""

from typing import Any

import jax

from prompt_tuning.core.prompt import Initializer


def symmetric(scale: float = 0.5) -> Initializer:
  """U(-scale, scale)."""
  _check("symmetric", scale)

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    del spec
    return jax.random.uniform(key, shape, minval=-scale, maxval=scale)

  return draw


def positive(scale: float = 0.5) -> Initializer:
  """U(0, scale): what google-research/prompt-tuning released as its default."""
  _check("positive", scale)

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    del spec
    return jax.random.uniform(key, shape, maxval=scale)

  return draw


def normal(stddev: float = 0.02) -> Initializer:
  """N(0, stddev^2)."""
  _check("normal", stddev)

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    del spec
    return stddev * jax.random.normal(key, shape)

  return draw


def zeros() -> Initializer:
  """All zero."""

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    del key, spec
    return jax.numpy.zeros(shape)

  return draw


def ones() -> Initializer:
  """All one: a scale that changes nothing."""

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    del key, spec
    return jax.numpy.ones(shape)

  return draw


def _check(name: str, scale: float) -> None:
  if scale < 0:
    raise ValueError(f"`uniform.{name}` takes a scale of at least 0, got {scale}.")
