"""Fixtures of the files beside this one."""

import dataclasses

import jax
import method_tools as tools
import numpy as np
import pytest
from forward_tools import LABELS


@pytest.fixture(scope="module")
def case():
  return tools.case("prompt_tuning")


@pytest.fixture(scope="module")
def batch(case):
  """Rows whose targets are labels, but for the last one."""
  rows = [dict(row) for row in case.rows]
  for i, row in enumerate(rows[:-1]):
    ids = [*tools.encode(LABELS[i % 3]), 1]
    row["targets"] = np.asarray(ids, np.int32)
  return dataclasses.replace(case, rows=rows).batch()


@pytest.fixture(scope="module")
def taught(case):
  """The model with a teacher that is another prompt, and one that is the same."""
  model = dataclasses.replace(
    case.model, teachers={"other": case.model.prompt, "same": case.model.prompt}
  )
  held = jax.tree.map(lambda x: x + 0.5, case.params["prompt"])
  teachers = {"other": held, "same": case.params["prompt"]}
  return model, {**case.params, "teacher": teachers}
