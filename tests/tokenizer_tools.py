"""Tokenizer folders of every kind, made as Transformers writes them, and texts."""

import json
import random

from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

EXTRA_IDS = 100
ADDED = ["<cause>"]
WITH_ADDED = ["<cause> of it", "a<cause>b", "<cause><extra_id_3> <cause>"]
SENTENCES = [
  "The quick brown fox jumps over the lazy dog.",
  "A film as warm as it is clever, and never dull!",
  "Größe, naïve café; 漢字 and кириллица.",
]


def sentinels(count=EXTRA_IDS):
  """From the last to the first, as they stand above the pieces."""
  return [f"<extra_id_{number}>" for number in reversed(range(count))]


def t5(folder, vocabulary_file, count=None, added=()):
  """A T5's tokenizer.json and tokenizer_config.json without a spiece.model.

  Args:
    vocabulary_file: SentencePiece model that it holds the pieces of. count: how many of
      them; None for all. added: tokens above the sentinels.
  """
  model = sentencepiece_model_pb2.ModelProto()
  with open(vocabulary_file, "rb") as file:
    model.ParseFromString(file.read())
  pieces = [(piece.piece, piece.score) for piece in model.pieces][:count]
  pieces += [(sentinel, 0.0) for sentinel in sentinels()]
  made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
  charsmap = model.normalizer_spec.precompiled_charsmap
  made.normalizer = normalizers.Precompiled(charsmap)
  space = {"replacement": "▁", "prepend_scheme": "always", "split": True}
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**space)]
  )
  made.decoder = decoders.Metaspace(**space)
  special = ["<pad>", "</s>", "<unk>", *sentinels()]
  made.add_special_tokens([AddedToken(token, normalized=False) for token in special])
  made.add_tokens(list(added))
  made.post_processor = processors.TemplateProcessing(
    single=["$A", "</s>"],
    pair=["$A", "</s>", "$B", "</s>"],
    special_tokens=[("</s>", 1)],
  )
  names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
  return write(folder, made, {**names, "tokenizer_class": "T5Tokenizer"})


def byte_level(folder):
  """GPT-2's kind: pairs of bytes, merged; one token ends a text and nothing pads."""
  made = Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.post_processor = processors.ByteLevel(trim_offsets=False)
  trainer = trainers.BpeTrainer(
    vocab_size=330,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  made.train_from_iterator(SENTENCES, trainer)
  return write(folder, made, {"eos_token": "<|endoftext|>"})


def word_piece(folder):
  """BERT's kind, which fills up and cuts off what it is given."""
  made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
  made.normalizer = normalizers.BertNormalizer()
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece()
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  trainer = trainers.WordPieceTrainer(
    vocab_size=150, special_tokens=special, show_progress=False
  )
  made.train_from_iterator(SENTENCES, trainer)
  made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
  made.enable_truncation(4)
  made.enable_padding(length=8, pad_token="[PAD]", pad_id=0)
  return write(folder, made, None)


def write(folder, made, config):
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / "tokenizer.json"))
  if config is not None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return folder


TEXTS = [
  "",
  "  \n\t ",
  "hello world",
  " a  lovely evening ",
  "tabs\tand\nlines\r\nand  runs   of spaces",
  "naïve café — 漢字 ☕",
  "Fill <extra_id_0> and <extra_id_99> in.",
  "x<extra_id_1>y",
  "  <extra_id_0>  <extra_id_1>",
  "<extra_id_100> <EXTRA_ID_0> <extra_id_00> <extra_id_0",
  "the end</s> or not",
  "</s>",
  "<pad> a<unk>b <s>",
  "[CLS] a [SEP] <|endoftext|>",
  "Привет, мир! Ёлка",
  "مرحبا بالعالم שלום",
  "नमस्ते สวัสดี 안녕하세요 각",
  "こんにちは ﾊﾝｶｸ　全角 ＡＢＣ１２３",
  "tie\u0302\u0301ng e\u0301 é Å \u212b a\u0300\u0301\u0302\u0303",
  "ﬁ ﬂ ½ ² ™ ① Ⅷ ㎏ 𝔘𝔫𝔦 ß ẞ İ ı",
  "👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️",
  "a\u200bb\u200dc\ufeffd\u00a0e\u2003f\u3000g\u2028h\u0085i",
  "\x00 nul \x01\x7f",
  "▁underscore ▁▁ a▁b",
  "don't I'm 3.14 1,000 http://a.b/c?d=e&f",
  "def f(x):\n    return x\n",
  "\U000f0000 private \ue000",
  "a" * 300,
  "word " * 200,
  "漢" * 100,
  "this is <prompt> good ",
]
BLOCKS = [
  *[(0x20, 0x7E)] * 6,
  (0x00, 0x1F),
  (0xA0, 0x24F),
  (0x300, 0x36F),
  (0x370, 0x52F),
  (0x590, 0x6FF),
  (0x900, 0xFFF),
  (0x1000, 0x1FFF),
  (0x2000, 0x2BFF),
  (0x3000, 0x30FF),
  (0x4E00, 0x9FFF),
  (0xAC00, 0xD7A3),
  (0xE000, 0xFFEF),
  (0x1F300, 0x1FAFF),
]
BITS = [" ", "  ", "\n", "\t", "<extra_id_7>", "</s>", "<pad>", "<unk>", "the", "▁"]


def texts(count, seed=0):
  """`TEXTS`, and `count` drawn from all scripts, spaces and marks."""
  rng, found = random.Random(seed), list(TEXTS)
  for _ in range(count):
    parts = []
    for _ in range(rng.randint(1, 12)):
      low, high = rng.choice(BLOCKS)
      letters = [chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))]
      parts.append(rng.choice(BITS) if rng.random() < 0.3 else "".join(letters))
    found.append("".join(parts))
  return found
