"""How many operations a step needs: the yardstick that compiled steps are held to.

A multiplication with an addition counts 2. With N weights that a token passes, a
forward pass costs 2 N a token; the gradient of activations costs as much again, that of
the weights as much once more: 4 N for a prompt in front of frozen weights, 6 N for full
fine-tuning. Attention's own two products have no weights, so their backward pass is
always twice the forward pass.

That is the field's count, not a bound: where targets are short, ours reads the encoder
without making keys and values of each of its positions, and needs less.
"""

import dataclasses

from ours import Sizes


@dataclasses.dataclass(frozen=True)
class Need:
  """Attributes:
  weights: operations of 2 N a token, once. attention: of the products of attention.
  """

  weights: float
  attention: float

  @property
  def forward(self) -> float:
    return self.weights + self.attention

  @property
  def prompt_step(self) -> float:
    """4 N a token and attention: forward, and the gradient of activations."""
    return 2 * self.weights + 3 * self.attention

  @property
  def full_step(self) -> float:
    """6 N a token and attention."""
    return 3 * self.weights + 3 * self.attention


def kernels(shape: Sizes) -> tuple[int, int]:
  """Weights of one of attention's four kernels, and of a gated feed-forward."""
  joined = shape.heads * shape.head_width
  return shape.width * joined, 3 * shape.width * shape.ff


def encoder(shape: Sizes, rows: int, length: int, slots: int = 0) -> Need:
  """One forward pass of the encoder over `rows` of `length` positions.

  Cross-attention's keys and values are made of every encoder position, and count here.
  `slots` are keys and values beside those of the positions.
  """
  kernel, feed = kernels(shape)
  own = shape.encoder_layers * (4 * kernel + feed)
  cross = shape.decoder_layers * 2 * kernel
  products = 4 * shape.heads * shape.head_width * length * (length + slots)
  return Need(
    2.0 * (own + cross) * rows * length, float(shape.encoder_layers * products * rows)
  )


def code(shape: Sizes) -> Need:
  """The frozen encoder's pass over the inputs without their prompt."""
  alone = dataclasses.replace(shape, decoder_layers=0)
  return encoder(alone, shape.batch, shape.inputs)


def decoder(shape: Sizes, rows: int, length: int, encoded: int, slots: int = 0) -> Need:
  """One forward pass of the decoder and of the logits over `rows` of `length`."""
  kernel, feed = kernels(shape)
  own = shape.decoder_layers * (6 * kernel + feed) + shape.width * shape.vocabulary
  products = 4 * shape.heads * shape.head_width * length * (length + slots + encoded)
  return Need(2.0 * own * rows * length, float(shape.decoder_layers * products * rows))


def self_attention(shape: Sizes, rows: int, length: int) -> Need:
  """One forward pass of one layer's self-attention."""
  kernel, _ = kernels(shape)
  products = 4 * shape.heads * shape.head_width * length**2
  return Need(2.0 * 4 * kernel * rows * length, float(products * rows))


def need(
  shape: Sizes, prompt: int | None = None, slots: tuple[int, int] = (0, 0)
) -> Need:
  """A forward pass of the whole model.

  Args:
    shape: sizes. prompt: positions in front of the inputs; None for `shape.prompt`.
    slots: keys and values that a prompt puts into (the encoder, the decoder).
  """
  length = shape.inputs + (shape.prompt if prompt is None else prompt)
  first = encoder(shape, shape.batch, length, slots[0])
  second = decoder(shape, shape.batch, shape.targets, length, slots[1])
  return Need(first.weights + second.weights, first.attention + second.attention)
