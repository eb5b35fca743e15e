"""Makes the ids that transformers gives the texts of `tokenizer_tools`.

  PYTHONPATH=tests python tests/goldens/make_tokenizer_ids.py

Writes tokenizer_ids.json beside this file: the T5 folder of `tokenizer_tools.t5` over
the vocabulary of the mini model, with one added token, read by AutoTokenizer. Made with
transformers 5.24.0 and tokenizers 0.23.3; neither needs torch.
"""

import json
import pathlib
import tempfile

import tokenizer_tools
import transformers

HERE = pathlib.Path(__file__).parent
MINI = HERE.parent.parent / "prompt_tuning" / "demo" / "mini" / "spiece.model"


def main() -> None:
  texts = [*tokenizer_tools.texts(60), *tokenizer_tools.WITH_ADDED]
  with tempfile.TemporaryDirectory() as name:
    folder = tokenizer_tools.t5(pathlib.Path(name), MINI, added=tokenizer_tools.ADDED)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
  found = []
  for text in texts:
    ids = theirs(text)["input_ids"]
    words = theirs.decode(ids, skip_special_tokens=True)
    found.append({"text": text, "ids": ids, "decoded": words})
  lines = ",\n".join(json.dumps(line) for line in found)
  (HERE / "tokenizer_ids.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
  main()
