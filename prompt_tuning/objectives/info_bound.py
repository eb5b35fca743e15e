"""InfoPrompt: lower bounds of what a prompt says of the labels and of the text.

  q = mean of the prompt's rows          c = mean of the rows of words [C H], trained
  f, f0 = the decoder's state at the first target, with and without the prompt
  z = mu(f) + sigma(f) eps               o = out(z), and o0 of f0, `samples` times
  head   L_h = -log e^{s(q, c)} / (e^{s(q, c)} + sum over tokens t of e^{s(e_t, c)})
  text   L_r = -log e^{s(o, k)} / (e^{s(o, k)} + sum over j of e^{s(o0_j, k)})
  KL     = KL(N(mu, sigma) || N(0, 1)) of f and of f0

with k = key(q), through which no gradient reaches the prompt. The term is
gamma L_h + beta L_r + kl KL, a mean over examples; log(T + 1) - L_h and
log(samples B + 1) - L_r bound the two mutual informations from below.

Wu et al., 2023, "InfoPrompt: Information-Theoretic Soft Prompt Tuning for Natural
Language Understanding". Our choices: s is the cosine over `temperature`, because a T5's
rows are too long for products; negatives are those of the whole batch, where the
released code takes an example's own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.axes import along
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import Ids
from prompt_tuning.core.model import Batch
from prompt_tuning.objectives.objective import Objective, Term, Words

# Bounds of log sigma in the released code.
_LOW, _HIGH = -2.0, 10.0


@dataclasses.dataclass(frozen=True)
class InfoBound(Objective):
  """Both bounds; of a prompt at "encoder.input", rows not packed.

  It trains C H + H^2 + H + 2 (H n + n) + n H + H numbers that no product keeps.

  Attributes:
    gamma, beta, kl: weights of the three parts.
    width: n, of the bottleneck. samples: negatives that each example gives.
    temperature: of the scores, above 0.
    labels: piece ids of the labels' words, once it is bound to a task.
  """

  labelled: ClassVar[bool] = True
  gamma: float = 0.1
  beta: float = 0.2
  kl: float = 0.1
  width: int = 32
  samples: int = 4
  temperature: float = 0.1
  name: str = "info"
  labels: Sequence[Sequence[int]] | None = None

  def __post_init__(self) -> None:
    if min(self.gamma, self.beta, self.kl) < 0:
      raise ValueError(
        "`InfoBound.gamma`, `beta` and `kl` must be at least 0, got "
        f"{self.gamma}, {self.beta} and {self.kl}."
      )
    if self.width < 1 or self.samples < 1 or not self.temperature > 0:
      raise ValueError(
        "`InfoBound.width` and `samples` must be at least 1 and `temperature` above 0, "
        f"got {self.width}, {self.samples} and {self.temperature}."
      )

  def bound(self, words: Words, labels: Sequence[str] | None) -> "InfoBound":
    if not labels:
      raise ValueError(
        "`OBJECTIVE` starts from the words of the task's labels, but it has none. Set "
        "LABELS."
      )
    ids = tuple(tuple(map(int, words.encode(label))) for label in labels)
    return dataclasses.replace(self, labels=ids)

  def init(self, key: Any, model: Any, params: Any) -> dict[str, Any]:
    """The branch `objective/info`: words [C H], key, mean, spread and out."""
    backbone = model.backbone
    H, n = backbone.spec.width, self.width
    rows = [
      backbone.embed(params["backbone"], jnp.asarray(ids)).mean(0)
      for ids in self.labels
    ]
    drawn = jax.nn.initializers.lecun_normal()
    sizes = {"key": (H, H), "mean": (H, n), "spread": (H, n), "out": (n, H)}
    keys = jax.random.split(key, len(sizes))
    heads = {
      name: {"kernel": drawn(one, size), "bias": jnp.zeros(size[1])}
      for one, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    return {"words": jnp.stack(rows).astype(jnp.float32), **heads}

  def count(self, batch: Batch, ids: Ids) -> Float[Array, ""]:
    """Examples."""
    return ids.is_real(batch["targets"]).any(-1).sum().astype(jnp.float32)

  def __call__(self, forward: Forward) -> Term:
    own, q_RH = forward.own(self.name), _prompt(forward)
    real_B = forward.examples.astype(jnp.float32)
    head_B, head_bound_B = self._head(forward, own, q_RH)
    text_B, text_bound_B, kl_B = self._text(forward, own, q_RH)
    lost_B = self.gamma * head_B + self.beta * text_B + self.kl * kl_B
    weight = self.count(forward.batch, forward.ids)
    shown = {"bound_head": head_bound_B, "bound_text": text_bound_B, "kl": kl_B}
    metrics = {f"info_{k}": ((x * real_B).sum(), weight) for k, x in shown.items()}
    return Term((lost_B * real_B).sum(), weight, metrics)

  def _head(self, forward: Forward, own: Any, q_RH: Array) -> tuple[Array, Array]:
    """L_h and its bound of each example."""
    batch, c_H = forward.batch, own["words"].mean(0)
    text_BT = forward.ids.is_real(batch["inputs"]) & (batch["prompt_index"] < 0)
    weights = jax.lax.stop_gradient(forward.params["backbone"])
    tokens_BTH = forward.model.backbone.embed(weights, batch["inputs"])
    own_R1 = _cosine(q_RH, c_H)[:, None] / self.temperature
    tokens_BT = _cosine(tokens_BTH, c_H) / self.temperature
    own_B1 = jnp.broadcast_to(own_R1, (len(tokens_BT), 1))
    all_BX = jnp.concatenate([own_B1, jnp.where(text_BT, tokens_BT, -jnp.inf)], 1)
    lost_B = jax.nn.logsumexp(all_BX, -1) - own_B1[:, 0]
    return lost_B, jnp.log(text_BT.sum(-1) + 1.0) - lost_B

  def _text(
    self, forward: Forward, own: Any, q_RH: Array
  ) -> tuple[Array, Array, Array]:
    """L_r, its bound and the KL of each example."""
    k_RH = _affine(own["key"], jax.lax.stop_gradient(q_RH))
    key = forward.fresh_key(self.name)
    keys = (None, None) if key is None else jax.random.split(key)
    o_1BH, kl_B = self._posterior(own, forward.first, 1, keys[0])
    bare = forward.unprompted().first
    o_SBH, bare_kl_B = self._posterior(own, bare, self.samples, keys[1])
    B, H = bare.shape
    k_BH = jnp.broadcast_to(k_RH, (B, H))
    own_B1 = _cosine(o_1BH[0], k_BH)[:, None] / self.temperature
    # Rows that only fill up a batch are nobody's negatives.
    real_X = jnp.tile(forward.examples, self.samples)
    others_BX = _cosine(o_SBH.reshape(1, -1, H), k_BH[:, None]) / self.temperature
    all_BX = jnp.concatenate([own_B1, jnp.where(real_X, others_BX, -jnp.inf)], 1)
    lost_B = jax.nn.logsumexp(all_BX, -1) - own_B1[:, 0]
    return lost_B, jnp.log(real_X.sum() + 1.0) - lost_B, kl_B + bare_kl_B

  def _posterior(
    self, own: Any, f_BH: Array, count: int, key: Any
  ) -> tuple[Float[Array, "S B H"], Float[Array, " B"]]:
    """`count` samples of out(z), and KL(N(mu, sigma) || N(0, 1))."""
    mean_Bn = _affine(own["mean"], f_BH)
    spread_Bn = jnp.clip(_affine(own["spread"], f_BH), _LOW, _HIGH)
    shape = (count, *mean_Bn.shape)
    noise = jnp.zeros(shape) if key is None else jax.random.normal(key, shape)
    z_SBn = mean_Bn[None] + jnp.exp(spread_Bn)[None] * noise
    kl_Bn = (jnp.exp(2 * spread_Bn) + jnp.square(mean_Bn) - 1) / 2 - spread_Bn
    return _affine(own["out"], z_SBn), kl_Bn.sum(-1)


def _prompt(forward: Forward) -> Float[Array, "R H"]:
  """The mean of the prompt's rows."""
  slots = forward.slots
  if slots is None or forward.model.segments > 1:
    raise ValueError(
      "`OBJECTIVE` reads the vectors of a prompt at encoder.input, one example a row. "
      "Use a method that has one, and set PACK_SEGMENTS = 1."
    )
  return slots.vectors.mean(1)


def _affine(part: Any, x: Array) -> Array:
  product = x @ part["kernel"]
  return product + along(part["bias"], product)


def _cosine(left: Float[Array, "*X H"], right: Float[Array, "*X H"]) -> Array:
  right = along(right, left)
  dot = (left * right).sum(-1)
  # Of a vector of zeros the cosine is 0, and so is its gradient.
  sizes = (jnp.square(left).sum(-1) + 1e-12) * (jnp.square(right).sum(-1) + 1e-12)
  return dot * jax.lax.rsqrt(sizes)
