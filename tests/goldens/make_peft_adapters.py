"""Makes an adapter that PEFT saved, and the logits of its model.

  python tests/goldens/make_peft_adapters.py

Writes peft/prompt_tuning/ (adapter_config.json, adapter_model.safetensors) and
peft/logits.npz beside this file, over the model of hugging_face/t5_1_0. Made with torch
2.13.0, transformers 5.23.0 and peft 0.21.2 on a CPU, in float32.
"""

import json
import pathlib
import shutil

import numpy as np
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
OUT = HERE / "peft"


def main() -> None:
  torch.manual_seed(1)
  shutil.rmtree(OUT, ignore_errors=True)
  stored = np.load(HERE / "hugging_face" / "logits.npz")
  inputs, targets = torch.tensor(stored["inputs"]), torch.tensor(stored["targets"])
  folder = HERE / "hugging_face" / "t5_1_0"
  model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
  config = peft.PromptTuningConfig(
    task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, prompt_tuning_init="RANDOM"
  )
  model = peft.get_peft_model(model, config).eval()
  model.save_pretrained(OUT / "prompt_tuning")
  (OUT / "prompt_tuning" / "README.md").unlink(missing_ok=True)
  file = OUT / "prompt_tuning" / "adapter_config.json"
  fields = json.loads(file.read_text())
  fields["base_model_name_or_path"] = "t5_1_0"
  file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
  with torch.no_grad():
    found = model(input_ids=inputs, labels=targets)
  np.savez_compressed(OUT / "logits.npz", prompt_tuning=found.logits.numpy())


if __name__ == "__main__":
  main()
