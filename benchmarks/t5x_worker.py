"""T5X's side of the benchmarks, a process of its own that takes orders.

Imports T5X, and of ours `worker.py` alone.

The network is `t5x.examples.t5.network.Transformer` with random weights inside T5X's
encoder-decoder model and loss. The prompt takes the place of the first embeddings of
the encoder's inputs, which is what the upstream prompt library does; it alone is
differentiated. T5X embeds by a product with ones and zeros; `one_hot: false` in an
order makes it a gather.
"""

import json
from typing import Any

import worker

try:
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax
  import seqio
  from flax import linen as nn
  from t5x import models
  from t5x.examples.t5 import layers, network
except ImportError as error:
  print(json.dumps({"absent": str(error)}), flush=True)
  raise SystemExit(0) from error


class Prompted(nn.Module):
  """Embeddings of tokens; a prompt [P H] stands before them in every row."""

  table: nn.Module
  length: int
  width: int

  @nn.compact
  def __call__(self, ids: Any) -> Any:
    prompt_PH = self.param("prompt", nn.initializers.normal(0.5), self.shape)
    texts_BTH = self.table(ids[:, self.length :])
    rows = (len(ids), *prompt_PH.shape)
    return jnp.concatenate([jnp.broadcast_to(prompt_PH, rows), texts_BTH], axis=1)

  @property
  def shape(self) -> tuple[int, int]:
    return self.length, self.width


class Transformer(network.Transformer):
  """T5X's network whose encoder reads a prompt first."""

  one_hot: bool = True
  prompt: int = 0

  def setup(self) -> None:
    config = self.config
    self.shared_embedding = layers.Embed(
      num_embeddings=config.vocab_size,
      features=config.emb_dim,
      dtype=config.dtype,
      attend_dtype=jnp.float32,
      embedding_init=nn.initializers.normal(1.0),
      one_hot=self.one_hot,
      name="token_embedder",
    )
    read = Prompted(self.shared_embedding, self.prompt, config.emb_dim)
    self.encoder = network.Encoder(config=config, shared_embedding=read)
    self.decoder = network.Decoder(
      config=config, shared_embedding=self.shared_embedding
    )


def is_prompt(path: Any) -> bool:
  return path[-1].key == "prompt"


class Training:
  """Steps of one prompt."""

  def __init__(self, order: dict[str, Any]):
    shape = order["shape"]
    if shape["optimizer"] != "adamw":
      raise ValueError(f"T5X's side has adamw alone, not {shape['optimizer']}.")
    config = network.T5Config(
      vocab_size=shape["vocabulary"],
      dtype=shape["dtype"],
      emb_dim=shape["width"],
      num_heads=shape["heads"],
      num_encoder_layers=shape["encoder_layers"],
      num_decoder_layers=shape["decoder_layers"],
      head_dim=shape["head_width"],
      mlp_dim=shape["ff"],
      mlp_activations=("gelu", "linear"),
      dropout_rate=shape["dropout"],
    )
    ids = np.load(order["file"])
    length = shape["prompt"]
    module = Transformer(config, one_hot=order["one_hot"], prompt=length)
    vocabulary = seqio.PassThroughVocabulary(shape["vocabulary"])
    model = models.EncoderDecoderModel(module, vocabulary, vocabulary, None)
    inputs, targets = ids["inputs_0"], ids["targets_0"]
    # Any id above 0 holds the prompt's places open.
    front = np.ones((len(inputs), length), inputs.dtype)
    self.batch = {
      "encoder_input_tokens": np.concatenate([front, inputs], 1),
      "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": targets,
      "decoder_loss_weights": (targets > 0).astype(np.int32),
    }
    self.batch = {name: jnp.asarray(x) for name, x in self.batch.items()}
    shapes = {name: x.shape for name, x in self.batch.items()}
    drawn = jax.jit(lambda key: model.get_initial_variables(key, shapes))
    whole = drawn(jax.random.key(0))["params"]
    flat, tree = jax.tree_util.tree_flatten_with_path(whole)
    (at,) = (i for i, (path, _) in enumerate(flat) if is_prompt(path))
    leaves = [leaf for _, leaf in flat]
    self.parameters = sum(leaf.size for leaf in leaves) - leaves[at].size
    rule = optax.adamw(1e-3, weight_decay=0.0)

    def loss(prompt, frozen, batch, key):
      params = tree.unflatten([*frozen[:at], prompt, *frozen[at:]])
      return model.loss_fn(params, batch, key)

    def step(state, frozen, batch, key):
      number, prompt, moments = state
      step_key = jax.random.fold_in(key, number)
      grads, facts = jax.grad(loss, has_aux=True)(prompt, frozen, batch, step_key)
      updates, moments = rule.update(grads, moments, prompt)
      return (number + 1, optax.apply_updates(prompt, updates), moments), facts

    prompt = leaves.pop(at)
    self.frozen, self.key = leaves, jax.random.key(2)
    self.state = jnp.zeros((), jnp.int32), prompt, rule.init(prompt)
    self.run = jax.jit(step, donate_argnums=0)
    lowered = self.run.lower(self.state, self.frozen, self.batch, self.key)
    self.run = lowered.compile()
    self.flops = self.run.cost_analysis()["flops"]

  def __call__(self) -> None:
    self.state, facts = self.run(self.state, self.frozen, self.batch, self.key)
    jax.block_until_ready((self.state, facts))


def describe(side: Training, order: dict[str, Any]) -> dict[str, Any]:
  return {"parameters": side.parameters, f"flops of {order['name']}": side.flops}


if __name__ == "__main__":
  facts = {"versions": {"jax": jax.__version__}, "device": jax.default_backend()}
  worker.serve(facts, {"train": Training}, describe)
