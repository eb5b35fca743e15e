"""Annotated shapes are true: every method is traced while a checker reads them."""

import os
import pathlib
import subprocess
import sys

import method_tools as tools
import pytest

CHILD = pathlib.Path(__file__).resolve().parent / "shapes_child.py"
# A sentence for each kind of place and word; the rest where time is no matter.
SOME = (
  "unprompted p_tuning_v2 dept lora ia3 bitfit adapter m_idpg_phm iapt lpt_mppg "
  "ipt_rnn_concat ipt_cnn_prefix s_idpg_phm attempt task_prompts ptec"
).split()


def traced(*names):
  found = subprocess.run(
    [sys.executable, str(CHILD), *names], capture_output=True, text=True, check=True
  )
  return found.stdout


# Of these a few, which read a text, a layer, a kernel and a head.
FEW = ["dept", "lora", "iapt", "ptec"]


def test_a_few_annotated_shapes_are_true():
  assert traced(*FEW) == ""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4) if tools.THOROUGH else [None])
def test_every_annotated_shape_is_true(part):
  names = SOME if part is None else tools.METHODS[part::4]
  assert traced(*names) == ""


def test_a_wrong_shape_is_seen(tmp_path):
  """The checker is at work: a word that lies is told of."""
  lie = "\n".join(
    [
      "import sys; sys.argv = ['x']",
      f"exec(open({str(CHILD)!r}).read())",
      "from prompt_tuning.core.context import masked_mean",
      "import jax.numpy as jnp",
      "try: masked_mean(jnp.ones((2, 3, 4)), jnp.ones((2, 5), bool))",
      "except Exception as error: print(type(error).__name__)",
    ]
  )
  found = subprocess.run(
    [sys.executable, "-c", lie],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHILD.parent), *sys.path])},
  )
  assert found.stdout.strip() == "TypeCheckError"
