"""Goldens of Hugging Face's encoders, and a tiny one that every size is known of."""

import functools
import pathlib

import jax
import numpy as np

from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.interop import bert_family

GOLDENS = pathlib.Path(__file__).resolve().parent.parent / "goldens"
NAMES = ("bert", "bert_mlm", "bert_classes", "roberta_mlm", "xlmr")
# Transformers itself lies 2e-6 from float64; a tanh in place of the exact GELU 3e-3.
CLOSE = 2e-5

CONFIG = BertConfig(
  vocab_size=41,
  emb_dim=12,
  num_heads=3,
  mlp_dim=20,
  num_layers=2,
  positions=40,
  mlm_head=True,
  first_id=4,
  last_id=5,
  mask_id=6,
)
ROBERTA = BertConfig(
  vocab_size=43,
  emb_dim=12,
  num_heads=3,
  mlp_dim=20,
  num_layers=2,
  positions=42,
  first_position=2,
  types=1,
  norm_epsilon=1e-5,
  kind="roberta",
  pad_id=1,
  first_id=0,
  last_id=2,
  mask_id=42,
)


@functools.cache
def golden(name):
  """(backbone, weights, expected arrays)"""
  folder = GOLDENS / f"hugging_{name}"
  opened = bert_family.open_source(folder)
  backbone, params = bert_family.load(opened, None, None, None)
  return backbone, params, dict(np.load(folder / "expected.npz"))


def weights(backbone, scale=2.0):
  """Random ones that attention and norms are not nearly idle under."""
  drawn = backbone.init(jax.random.key(1))
  noise = iter(jax.random.split(jax.random.key(2), 200))
  return jax.tree.map(
    lambda x: scale * x + 0.1 * jax.random.normal(next(noise), x.shape), drawn
  )


@functools.cache
def tiny(kind="bert"):
  backbone = Bert({"bert": CONFIG, "roberta": ROBERTA}[kind])
  return backbone, weights(backbone)


def close(found, wanted, atol=CLOSE):
  np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=atol, rtol=0)
