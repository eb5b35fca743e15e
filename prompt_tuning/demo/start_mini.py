"""Starting weights of the mini T5: random, but for a token table from co-occurrence.

  python -m prompt_tuning.demo.start_mini --data=DIR --output=runs/start \\
    --vocabulary=prompt_tuning/demo/mini/spiece.model

On two cores there is no time to learn word vectors by gradient. Counting how often
pieces stand near each other takes a minute: positive pointwise mutual information of
pieces within a window, factored to H columns (Levy & Goldberg, 2014, "Neural Word
Embedding as Implicit Matrix Factorization"), fills the token table and, transposed and
small, the logits' kernel.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from sklearn.utils.extmath import randomized_svd

from prompt_tuning.backbones.t5 import files
from prompt_tuning.demo.make_vocabulary import sentences
from prompt_tuning.engine import config

WINDOW = 6
# Contexts are discounted by this power of their frequency.
SMOOTHING = 0.75


def count_pairs(
  data: pathlib.Path, vocabulary: pathlib.Path, rows: int, limit: int
) -> np.ndarray:
  """How often two pieces stand within the window, near ones weighing more [V V]."""
  model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
  counts = np.zeros(rows * rows, np.float32)
  seen, buffer = 0, []

  def flush() -> None:
    ids = np.concatenate(buffer).astype(np.int64)
    for distance in range(1, WINDOW + 1):
      left, right = ids[:-distance], ids[distance:]
      pairs = (left * rows + right)[(left > 0) & (right > 0)]
      found, often = np.unique(pairs, return_counts=True)
      counts[found] += often / distance
    buffer.clear()

  size = 0
  for text in sentences(data, seed=1):
    # A gap of zeros as long as the window keeps passages apart.
    buffer.append(np.array([*model.encode(text), *[0] * WINDOW]))
    size += len(buffer[-1])
    if size > 2_000_000:
      seen, size = seen + size, 0
      flush()
      if seen > limit:
        break
  if buffer:
    flush()
  counts = counts.reshape(rows, rows)
  return counts + counts.T


def vectors(counts_VV: np.ndarray, width: int, seed: int = 0) -> np.ndarray:
  """Rows of unit root mean square [V H]; pieces never seen get random ones."""
  total = counts_VV.sum()
  piece_V = counts_VV.sum(1)
  context_V = piece_V**SMOOTHING
  context_V /= context_V.sum()
  with np.errstate(divide="ignore", invalid="ignore"):
    pmi_VV = np.log(counts_VV / total / (piece_V / total)[:, None] / context_V[None])
  ppmi_VV = np.where(np.isfinite(pmi_VV), np.maximum(pmi_VV, 0), 0).astype(np.float32)
  left_VH, strength_H, _ = randomized_svd(ppmi_VV, width, random_state=seed)
  table_VH = left_VH * np.sqrt(strength_H)
  noise_VH = np.random.default_rng(seed).normal(size=table_VH.shape)
  table_VH = np.where(piece_V[:, None] > 0, table_VH, noise_VH)
  return table_VH / np.sqrt(np.mean(table_VH**2, 1, keepdims=True) + 1e-12)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--vocabulary", type=pathlib.Path, required=True)
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--tokens", type=int, default=16_000_000)
  args = parser.parse_args()
  config.parse(["gin/backbones/mini.gin"])
  backbone = config.macro("BACKBONE")
  spec = backbone.spec
  params = backbone.init(jax.random.key(0))
  counts = count_pairs(args.data, args.vocabulary, spec.vocabulary, args.tokens)
  table = jnp.asarray(vectors(counts, spec.width), jnp.float32)
  params["token_embedder"]["embedding"] = table
  params["decoder"]["logits_dense"]["kernel"] = table.T * spec.width**-0.5
  files.save(args.output, backbone, params, args.vocabulary)
  print(f"starting weights: {args.output}")


if __name__ == "__main__":
  main()
