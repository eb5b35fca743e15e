"""The examples in docstrings, run as they stand."""

import doctest
import importlib

import pytest

MODULES = "api catalogue comparing engine.listed engine.product looking scoring tuning"


@pytest.mark.parametrize("name", MODULES.split())
def test_the_examples_of_a_module(name):
  module = importlib.import_module(f"prompt_tuning.{name}")
  found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
  assert found.attempted and not found.failed
