"""Small tasks of lists."""

import pathlib

from prompt_tuning.data import (
  lists,
)

ROOT = pathlib.Path(__file__).parents[2]
VOCABULARY = str(ROOT / "prompt_tuning/demo/mini/spiece.model")


def task(name, count, labels=("good", "bad"), **fields):
  rows = [(f"{name} {i}", labels[i % len(labels)]) for i in range(count)]
  return lists.Lists(
    **{"name": name, "train": rows, "validation": rows[:2], "labels": labels, **fields}
  )


def inputs(examples):
  return [example["inputs"] for example in examples]


def read(dataset, count=None):
  dataset = dataset if count is None else dataset.take(count)
  return [
    (e["inputs_pretokenized"].decode(), int(e["task"]))
    for e in dataset.as_numpy_iterator()
  ]
