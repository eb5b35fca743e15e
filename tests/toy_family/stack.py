"""Layers of a toy: over whole rows, or behind what was read before."""

import jax
import jax.numpy as jnp


def whole(toy, params, x_BXH, group_BX, seen_BX, injection):
  """States, keys and values of rows, a prefix in front, and which are seen."""
  (B, X), held = group_BX.shape, injection and injection.get("decoder.kv")
  causal_XX = jnp.tril(jnp.ones((X, X), bool))
  seen_BXX = (
    (group_BX[..., None] == group_BX[:, None]) & seen_BX[:, None] & causal_XX[None]
  )
  places_BX = jnp.maximum(seen_BXX.sum(-1) - 1, 0)
  allowed_BXK, past, kept_BK = seen_BXX | jnp.eye(X, dtype=bool), None, seen_BX
  if held:
    S, P = max(len(held.vectors) // B, 1), held.vectors.shape[2]
    rows = jnp.broadcast_to(held.vectors, (B * S, *held.vectors.shape[1:]))
    rows = rows.reshape(B, S, -1, P, toy.inner).swapaxes(1, 2)
    rows = rows.reshape(B, -1, S * P, toy.inner)
    past = [(rows[:, 2 * i], rows[:, 2 * i + 1]) for i in range(toy.layers)]
    owner_Q = jnp.repeat(jnp.arange(1, S + 1), P)
    front = (group_BX[..., None] == owner_Q) | (len(held.vectors) == 1)
    allowed_BXK = jnp.concatenate([front, allowed_BXK], -1)
    kept_BK = jnp.concatenate([jnp.ones((B, S * P), bool), seen_BX], 1)
  states_BXH, past = walk(toy, params, x_BXH, places_BX, allowed_BXK, past, joined)
  return states_BXH, past, kept_BK


def behind(toy, params, ids_BU, reading, places_BU, seen_BUU, join):
  front = jnp.broadcast_to(
    reading.allowed_BK[:, None], (*ids_BU.shape, reading.allowed_BK.shape[1])
  )
  allowed_BUK = jnp.concatenate([front, seen_BUU], -1)
  x_BUH = toy.embed(params, ids_BU)
  return walk(toy, params, x_BUH, places_BU, allowed_BUK, reading.past, join)


def walk(toy, params, x_BXH, places_BX, allowed_BXK, past, join):
  x_BXH, found = x_BXH + _waves(places_BX, toy.width), []
  for i in range(toy.layers):
    own, y_BXH = params[f"layers_{i}"], _norm(x_BXH)
    pair = y_BXH @ own["key"], y_BXH @ own["value"]
    pair = tuple(join(i, past and past[i], pair))
    scores_BXK = jnp.einsum("BXJ,BKJ->BXK", y_BXH @ own["query"], pair[0])
    scores_BXK = jnp.where(allowed_BXK, scores_BXK * toy.inner**-0.5, -1e9)
    x_BXH += jax.nn.softmax(scores_BXK) @ pair[1] @ own["out"]
    x_BXH += jax.nn.relu(_norm(x_BXH) @ own["up"]) @ own["down"]
    found.append(pair)
  return _norm(x_BXH), found


def joined(layer, past, new):
  pairs = zip(past, new, strict=True) if past else [(x,) for x in new]
  return [jnp.concatenate(pair, 1) for pair in pairs]


def _norm(x):
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def _waves(places_BX, width):
  rates = 8.0 ** -jnp.arange(width // 2)
  angles = places_BX[..., None] * rates
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
