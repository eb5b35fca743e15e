"""Checkpoints: whole, or absent."""

import jax
import jax.numpy as jnp
import pytest
from engine_tools import same

from prompt_tuning.engine import (
  checkpoint,
  optimizer,
  state,
)


@pytest.fixture
def saved(tmp_path):
  """(folder, the state that was saved at steps 2 and 4)."""
  tree = {"prompt": {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}}
  # Slots of masked branches are no arrays.
  rule = optimizer.Optimizer(
    optimizer.Adafactor(),
    optimizer.constant(0.3),
    branch_schedules={"prompt/a": optimizer.constant(0.1)},
  )
  begin = state.create(tree, rule.build(tree))
  store = checkpoint.Checkpoints(tmp_path / "checkpoints")
  for number in (1, 2, 4):
    store.save(begin.replace(step=jnp.int32(number)))
  store.close()
  return tmp_path / "checkpoints", begin


def test_checkpoints_come_back_whole(saved):
  folder, begin = saved
  assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]
  store = checkpoint.Checkpoints(folder)
  assert store.newest() == 4
  nothing = jax.tree.map(jnp.zeros_like, begin)
  same(store.restore(nothing), begin.replace(step=jnp.int32(4)))
  assert int(store.restore(nothing, 2).step) == 2
  store.close()


@pytest.mark.parametrize("left", [(), ("_CHECKPOINT_METADATA",), ("default",)])
def test_unfinished_checkpoints_are_ignored(saved, caplog, left):
  folder, begin = saved
  for path in (folder / "4").iterdir():
    if path.name not in left:
      path.rename(folder.parent / path.name)
  (folder / "6.orbax-checkpoint-tmp-1").mkdir()
  store = checkpoint.Checkpoints(folder)
  warned = [r.getMessage() for r in caplog.records if "Unfinished" in r.getMessage()]
  assert len(warned) == 2
  assert "checkpoints/4, now unfinished-4" in warned[0]
  assert "6.orbax-checkpoint-tmp-1" in warned[1]
  assert store.newest() == 2
  # Its step can be saved again.
  store.save(store.restore(begin).replace(step=jnp.int32(4)))
  store.close()
  store = checkpoint.Checkpoints(folder)
  assert store.newest() == 4
  store.close()


def test_checkpoints_that_do_not_fit_are_refused(saved):
  folder, begin = saved
  store = checkpoint.Checkpoints(folder)
  other = begin.replace(trainable={"prompt": {"a": jnp.zeros(3), "c": jnp.ones(2)}})
  with pytest.raises(ValueError, match="checkpoints/4'.*(?s:.*)") as caught:
    store.restore(other)
  # What it lacks and what it adds.
  assert "trainable.prompt.c" in str(caught.value).replace("']['", ".")
  assert "trainable.prompt.b" in str(caught.value).replace("']['", ".")
  (folder / "4" / "default" / "manifest.ocdbt").write_bytes(b"x")
  with pytest.raises(ValueError, match="cannot be restored.*Remove that folder"):
    store.restore(begin)
  store.close()
