"""How tables start, and what inits say to bad input."""

import logging

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from word_tools import VALUES, C, Q, V, draw

from prompt_tuning.inits import saved, uniform, vocabulary


def test_uniform_draws():
  wide = draw(uniform.symmetric(0.5), 40, 50)
  assert wide.min() < -0.45 and wide.max() > 0.45 and np.abs(wide).max() <= 0.5
  positive = draw(uniform.positive(0.5), 40, 50)
  assert 0 <= positive.min() < 0.05 and 0.45 < positive.max() <= 0.5
  assert abs(draw(uniform.normal(0.02), 40, 50).std() - 0.02) < 0.002
  assert not draw(uniform.zeros(), 2, 3).any()


def test_sampled_rows_are_distinct_words():
  ids = draw(vocabulary.sampled(), 1, V - 3, C)[0, :, 0]
  assert sorted(ids) == list(range(3, V))
  few = draw(vocabulary.sampled(population=4), 1, 4, C)[0, :, 0]
  assert sorted(few) == [3, 4, 5, 6]
  repeated = draw(vocabulary.sampled(population=2), 1, 6, C)[0, :, 0]
  assert set(repeated) <= {3, 4}


def test_class_labels_start_as_their_mean_embedding():
  first = vocabulary.class_labels(["ab", "d"], uniform.zeros())
  np.testing.assert_array_equal(draw(first, 1, 3, C)[0, :, 0], [3.5, 6, 0])


def test_text_starts_as_its_pieces(caplog):
  initializer = vocabulary.text("abc", vocabulary.sampled())
  rows = draw(initializer, 1, 5, C)[0, :, 0]
  np.testing.assert_array_equal(rows[:3], [3, 4, 5])
  assert (rows[3:] >= 3).all()
  with caplog.at_level(logging.WARNING):
    np.testing.assert_array_equal(draw(initializer, 1, 2, C)[0, :, 0], [3, 4])
  assert "3 rows were given for a prompt of length 2" in caplog.text


def test_saved_rows(tmp_path):
  array = VALUES[0].astype(np.float64)
  np.save(tmp_path / "a.npy", array)
  (tmp_path / "prompt").mkdir()
  named = {"x": VALUES[0], "y": VALUES[1]}
  safetensors_numpy.save_file(named, tmp_path / "two.safetensors")
  one = tmp_path / "prompt" / "prompt.safetensors"
  safetensors_numpy.save_file({"x": VALUES[0]}, one)
  for path, tensor in (("a.npy", None), ("two.safetensors", "x"), ("prompt", None)):
    found = draw(saved.rows(str(tmp_path / path), tensor), 1, Q, C)
    np.testing.assert_array_equal(found[0], VALUES[0])
  np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
  (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:90])
  for path, tensor, fault in (
    ("objects.npy", None, "cannot be read as an array.*pickle"),
    ("cut.npy", None, "cannot be read as an array"),
    ("none.npy", None, "There is no file"),
    ("two.safetensors", None, "name one of them"),
    ("two.safetensors", "z", r"holds \['x', 'y'\].* got 'z'"),
  ):
    with pytest.raises(ValueError, match=fault):
      draw(saved.rows(str(tmp_path / path), tensor), 1, Q, C)
  with pytest.raises(ValueError, match=r"shape \(6, 8\), but \(1, 5, 8\) is asked"):
    draw(saved.rows(str(tmp_path / "a.npy")), 1, 5, C)
