"""Trains the SentencePiece vocabulary of the mini T5.

  python -m prompt_tuning.demo.make_vocabulary --data=DIR --output=spiece.model

DIR holds the plain-text files and `instructions.tsv.gz` of the pre-training recipe
(`configs/pretrain/mini.gin` names them). Ids follow T5: pad 0, end of sequence 1,
unknown 2; sentinels are added above the pieces when the file is loaded.
"""

import argparse
import gzip
import io
import os
import pathlib
import random
from collections.abc import Iterator

import sentencepiece

# Shares of each file that the trainer sees: enough text for 8,000 pieces, weighted
# towards everyday prose and the prompted tasks.
SHARES = {
  "wiki.txt.gz": 0.12,
  "books.txt.gz": 0.2,
  "science.txt.gz": 0.5,
  "instructions.tsv.gz": 0.25,
}


def sentences(data: pathlib.Path, seed: int) -> Iterator[str]:
  """Yields a fixed random sample of the lines of each file in `SHARES`."""
  draw = random.Random(seed)
  for name, share in SHARES.items():
    with gzip.open(data / name, "rt", encoding="utf-8") as lines:
      for line in lines:
        if draw.random() >= share:
          continue
        yield from line.rstrip("\n").split("\t")[-2:]


def train(data: pathlib.Path, output: pathlib.Path, size: int, seed: int) -> None:
  """Writes a unigram model of `size` pieces to `output`, whole or not at all."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=sentences(data, seed),
    model_writer=model,
    vocab_size=size,
    model_type="unigram",
    character_coverage=0.9998,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    split_digits=True,
    num_threads=2,
    minloglevel=1,
  )
  aside = output.with_suffix(".tmp")
  aside.write_bytes(model.getvalue())
  os.replace(aside, output)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--size", type=int, default=8000)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  train(args.data, args.output, args.size, args.seed)


if __name__ == "__main__":
  main()
