"""A tiny decoder in a folder, its tokenizer trained on a few sentences."""

import json

import jax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from prompt_tuning.backbones.decoder import files
from prompt_tuning.backbones.decoder.backbone import Decoder
from prompt_tuning.backbones.decoder.config import DecoderConfig

END = "<|endoftext|>"
SENTENCES = [
  "review: a good fine lovely great film number 12 positive",
  "review: a bad dull film number 3 negative",
]


def write_tokenizer(folder):
  """tokenizer.json of byte-level BPE, id 0 its one mark; returns V."""
  made = Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=[END],
    initial_alphabet=alphabet,
    show_progress=False,
  )
  made.train_from_iterator(SENTENCES, trainer)
  made.save(str(folder / "tokenizer.json"))
  marks = {"bos_token": END, "eos_token": END}
  (folder / "tokenizer_config.json").write_text(json.dumps(marks))
  return made.get_vocab_size()


def write(folder, scale=3.0, **sizes):
  """A folder of ours with random weights that say something."""
  beside = folder.parent / f"{folder.name}_tokenizer"
  beside.mkdir()
  rows = write_tokenizer(beside)
  given = {"logits_via_embedding": True, "start_id": 0, "end_id": 0, **sizes}
  backbone = Decoder(DecoderConfig(rows, 16, 4, 2, 6, 24, 2, **given))
  params = jax.tree.map(lambda x: scale * x, backbone.init(jax.random.key(0)))
  files.save(folder, backbone, params, beside / "tokenizer.json")
  return folder
