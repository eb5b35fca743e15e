"""T5 weights that any program can draw again, so that goldens hold no weights.

Used by the tests and by `make_t5_goldens.py`; needs NumPy alone.
"""

import zlib

import numpy as np

# The fields are those of `T5Config`; both tiny models are small enough to read.
T5_1_0 = {
  "vocab_size": 48,
  "emb_dim": 16,
  "num_heads": 3,
  "head_dim": 6,
  "mlp_dim": 24,
  "num_encoder_layers": 3,
  "num_decoder_layers": 2,
  "mlp_activations": ("relu",),
  "logits_via_embedding": True,
}
T5_1_1 = {
  **T5_1_0,
  "mlp_activations": ("gelu", "linear"),
  "logits_via_embedding": False,
}
CONFIGS = {"t5_1_0": T5_1_0, "t5_1_1": T5_1_1}
# Seeds under which searches end early in some rows and beams beat greedy decoding.
SEEDS = {"t5_1_0": 200, "t5_1_1": 44}


def t5_shapes(config: dict) -> dict[str, tuple[int, ...]]:
  """T5X parameter name, `/` between its parts -> shape."""
  H, F = config["emb_dim"], config["mlp_dim"]
  joined = config["num_heads"] * config["head_dim"]
  shapes = {"token_embedder/embedding": (config["vocab_size"], H)}
  norms = {"encoder": ("attention", "mlp")}
  norms["decoder"] = ("self_attention", "cross_attention", "mlp")
  attentions = {"encoder": ("attention",)}
  attentions["decoder"] = ("self_attention", "encoder_decoder_attention")
  gates = len(config["mlp_activations"])
  for side in ("encoder", "decoder"):
    for i in range(config[f"num_{side}_layers"]):
      layer = f"{side}/layers_{i}"
      for attention in attentions[side]:
        for part in ("query", "key", "value"):
          shapes[f"{layer}/{attention}/{part}/kernel"] = (H, joined)
        shapes[f"{layer}/{attention}/out/kernel"] = (joined, H)
      for label in ["wi"] if gates == 1 else [f"wi_{j}" for j in range(gates)]:
        shapes[f"{layer}/mlp/{label}/kernel"] = (H, F)
      shapes[f"{layer}/mlp/wo/kernel"] = (F, H)
      for norm in norms[side]:
        shapes[f"{layer}/pre_{norm}_layer_norm/scale"] = (H,)
    shapes[f"{side}/relpos_bias/rel_embedding"] = (config["num_heads"], 32)
    shapes[f"{side}/{side}_norm/scale"] = (H,)
  if not config["logits_via_embedding"]:
    shapes["decoder/logits_dense/kernel"] = (H, config["vocab_size"])
  return shapes


def t5_weights(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """float32 weights of every parameter, each drawn from its own generator.

  Unlike a fresh T5's where that makes outputs depend on every parameter: norms differ
  from 1, position biases matter, blocks outweigh the embeddings they are added to.
  """
  return {
    name: _draw(name, shape, config["head_dim"], seed)
    for name, shape in t5_shapes(config).items()
  }


def tiny_weights(name: str) -> dict[str, np.ndarray]:
  """The weights behind the goldens of `CONFIGS[name]`."""
  return t5_weights(CONFIGS[name], SEEDS[name])


def nested(flat: dict[str, np.ndarray]) -> dict:
  """The same weights as a tree, one level a part of the name."""
  tree = {}
  for name, value in flat.items():
    *path, leaf = name.split("/")
    branch = tree
    for part in path:
      branch = branch.setdefault(part, {})
    branch[leaf] = value
  return tree


def _draw(name: str, shape: tuple, head_dim: int, seed: int) -> np.ndarray:
  # NumPy promises never to change what a RandomState draws.
  normal = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
  values = normal.standard_normal(shape)
  if name.endswith("scale"):
    values = 1 + 0.2 * values
  elif name.endswith("kernel"):
    values *= shape[0] ** -0.5
    part = name.split("/")[-2]
    if part == "query":
      values *= head_dim**-0.5
    if part in ("out", "wo"):
      values *= 4
  return values.astype(np.float32)
