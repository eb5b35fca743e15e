"""What is written for T5X today is what upstream T5X has restored, bit for bit.

See goldens/make_t5x_restored.py, which runs upstream T5X.
"""

import json
import pathlib

import pytest
import t5x_tools
from goldens import weights

FILE = pathlib.Path(__file__).parent / "goldens" / "t5x_restored.json"
RESTORED = json.loads(FILE.read_text())


@pytest.mark.parametrize("kind", t5x_tools.FORMATS)
@pytest.mark.parametrize("name", weights.CONFIGS)
def test_written_checkpoints_are_those_that_t5x_restored(tmp_path, name, kind):
  step = t5x_tools.write(tmp_path, kind, name)
  assert step.name == f"checkpoint_{t5x_tools.STEP}"
  assert t5x_tools.content(step) == RESTORED[f"{name}/{kind}"]
