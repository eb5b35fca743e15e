"""Parameters and a batch of the toy."""

import jax.numpy as jnp
import numpy as np
import pytest
from engine_tools import B, U, V


@pytest.fixture
def params():
  draw = np.random.default_rng(5)
  return {
    "prompt": {"bias": jnp.asarray(draw.normal(size=V), jnp.float32)},
    "backbone": {"table": jnp.asarray(draw.normal(size=(V, V)), jnp.float32)},
  }


@pytest.fixture
def batch():
  draw = np.random.default_rng(0)
  targets = draw.integers(1, V, (B, U)).astype(np.int32)
  # Rows of 5, 4, 1 and 2 targets: the parts of a batch do not weigh the same.
  targets *= np.arange(U)[None] < np.array([5, 4, 1, 2])[:, None]
  inputs = draw.integers(0, V, (B, U))
  return {"inputs": inputs, "targets": targets, "decoder_inputs": inputs}
