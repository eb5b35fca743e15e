"""Traces methods while jaxtyping holds every annotated shape of the lower rooms.

As a program of its own: the hook must stand before the modules are imported. It prints
what does not fit, one block a method, and nothing else.

  python tests/shapes_child.py prompt_tuning lora ...
"""

import sys
import tempfile

import conftest  # noqa: F401  Quick compiles, one platform.
import jax
from jaxtyping import install_import_hook

# Records of objectives and the engine are rebuilt by JAX with stand-ins for arrays.
ROOMS = (
  "backbones",
  "blocks",
  "conditions",
  "core.context",
  "core.injection",
  "core.layers",
  "core.places",
  "decoding",
  "heads",
  "inits",
  "parameterisers",
  "transforms",
)
with install_import_hook([f"prompt_tuning.{r}" for r in ROOMS], "beartype.beartype"):
  import method_tools as tools

  from prompt_tuning.decoding import decode
  from prompt_tuning.engine import step
  from prompt_tuning.outputs.text import Beam, Greedy


def trace(name: str) -> None:
  """Everything that a method runs through, as shapes."""
  with tempfile.TemporaryDirectory() as folder:
    case = tools.case(name, folder)
  batch, key = case.batch(), jax.random.key(0)
  for one in (case, case.scanned()):
    jax.eval_shape(one.model.logits, one.params, batch)
  model, packed, _ = case.packed()
  gradients = step.gradients(model, case.method.objective, 1)
  jax.eval_shape(gradients, *case.split, packed, key)
  for decoder in (Greedy(3), Beam(3)):
    jax.eval_shape(
      lambda params, batch, how=decoder: decode.generate(
        case.model, params, batch, how
      ),
      case.params,
      batch,
    )


def main(*names: str) -> None:
  """Tells of each method that breaks an annotation."""
  for name in names:
    try:
      trace(name)
    except Exception as error:  # whatever the checker raises
      print(f"{name}: {error}\n")


if __name__ == "__main__":
  main(*sys.argv[1:])
