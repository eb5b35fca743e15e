"""Keys and values as prompts: they do what vectors in front of the text do."""

import dataclasses

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.model import PromptedModel, features
from prompt_tuning.core.places import KeysValues, Slots

P, B, T, U, V, H = 3, 2, 5, 4, 31, 16
CONFIG = T5Config(V, H, 2, 8, 24, 1, 2)
BACKBONE = T5(CONFIG)
PARAMS = tools.random_params(BACKBONE.shapes())
IDS = np.random.default_rng(0).integers(3, V, (2, B, T))
VECTORS = jnp.asarray(np.random.default_rng(1).normal(size=(1, P, H)), jnp.float32)


encode, decode = jax.jit(BACKBONE.encode), jax.jit(BACKBONE.decode)


def batch(encoder=0, decoder=0):
  lengths = {"encoder": encoder, "decoder": decoder}
  return features(IDS[0], IDS[1, :, :U], lengths)


def test_in_the_decoder_they_are_those_of_vectors_before_the_start():
  plain = batch()
  encoded, mask = encode(PARAMS, plain)
  injection = Injection({"decoder.input": Slots(VECTORS)})
  want = decode(PARAMS, batch(decoder=P), encoded, mask, injection)[:, P:]

  @jax.jit
  def filled(encoded, mask):
    return BACKBONE.prefill(PARAMS, (encoded, mask), 0, injection)[2]

  cache = filled(encoded, mask)
  flat = [x[:, :P].reshape(B, P, -1) for layer in cache for x in layer]
  injection = Injection({"decoder.kv": KeysValues(jnp.stack(flat, axis=1))})
  got = decode(PARAMS, plain, encoded, mask, injection)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  assert np.abs(got - decode(PARAMS, plain, encoded, mask)).max() > 0.1


def test_in_one_layer_of_the_encoder_they_are_those_of_vectors_in_front():
  layer = PARAMS["encoder"]["layers_0"]
  scale = layer["pre_attention_layer_norm"]["scale"]
  normed = (
    VECTORS
    / jnp.sqrt(jnp.mean(VECTORS**2, -1, keepdims=True) + 1e-6)
    * scale[None, None]
  )
  kernels = [layer["attention"][name]["kernel"] for name in ("key", "value")]
  kv = jnp.stack([normed @ kernel for kernel in kernels], axis=1)
  want, _ = encode(PARAMS, batch(P), Injection({"encoder.input": Slots(VECTORS)}))
  got, mask = encode(PARAMS, batch(), Injection({"encoder.kv": KeysValues(kv)}))
  np.testing.assert_allclose(got, want[:, P:], rtol=0, atol=1e-5)
  assert mask.shape == (B, T)
  # A slot that is masked might as well not be there.
  keep = jnp.array([[False, True, True]])
  masked = Injection({"encoder.kv": KeysValues(kv, keep)})
  shorter = Injection({"encoder.kv": KeysValues(kv[:, :, 1:])})
  np.testing.assert_allclose(
    encode(PARAMS, batch(), masked)[0],
    encode(PARAMS, batch(), shorter)[0],
    rtol=0,
    atol=1e-6,
  )


def test_scanned_layers_take_them_too():
  random = np.random.default_rng(2).normal(size=(B, 4, P, H))
  injection = Injection(
    {
      "encoder.kv": KeysValues(jnp.asarray(random[:, :2], jnp.float32)),
      "decoder.kv": KeysValues(jnp.asarray(random, jnp.float32)),
    }
  )
  found = []
  for scan in (False, True):
    backbone = T5(dataclasses.replace(CONFIG, scan_layers=scan))
    params = stack_layers(PARAMS, backbone.config) if scan else PARAMS

    @jax.jit
    def logits(params, backbone=backbone):
      encoded = backbone.encode(params, batch(), injection)
      return backbone.decode(params, batch(), *encoded, injection)

    found.append(logits(params))
  np.testing.assert_allclose(*found, rtol=0, atol=1e-5)


def test_what_reads_the_input_keeps_apart_in_packed_rows(tmp_path):
  for name in ("encoder.kv", "decoder.kv"):
    # Keys and values are not as wide as the token rows that its bias starts from.
    lines = ["include 'gin/inits/uniform_symmetric.gin'"]
    lines.append(f"prompt.Prompt.site = {name!r}")
    case = tools.case("s_idpg_dnn_embeddings", tmp_path, lines)
    assert case.model.lengths == {}
    model, packed, places = case.packed()
    logits = np.asarray(jax.jit(model.logits)(case.params, packed))
    for number, (b, s) in places.items():
      mine = np.asarray(packed["decoder_segment_ids"][b] == s)
      tools.assert_close(logits[b, mine], case.plain_logits[number, : mine.sum()])
    bare = jax.jit(PromptedModel(tools.BACKBONE).logits)(case.params, case.batch())
    assert np.abs(bare - case.plain_logits).max() > 0.1
