"""What is tuned here drives PEFT's own model; runs where the extra `oracles` is.

The other direction is in test_interop_prompts.py, on adapters that PEFT saved.
"""

import numpy as np
import pytest

import prompt_tuning as pt
from prompt_tuning import export

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TRAIN = [("a fine day", "positive"), ("a dull, wet day", "negative")] * 4


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning_decoder"])
def test_a_tuned_prompt_gives_the_same_logits_in_peft(method, tiny_folder, tmp_path):
  model = pt.load_model(tiny_folder)
  prompt = pt.tune(model, TRAIN, method=method, steps=3, PROMPT_LENGTH=3)
  prompt.save(tmp_path / "prompt")
  adapter, backbone = str(tmp_path / "adapter"), str(tmp_path / "backbone")
  export.export("peft", adapter, str(tmp_path / "prompt"))
  export.export("huggingface", backbone, checkpoint=tiny_folder)
  base = transformers.T5ForConditionalGeneration.from_pretrained(backbone)
  theirs = peft.PeftModel.from_pretrained(base.float(), adapter).eval()
  inputs = np.array([[5, 9, 12, 1], [7, 3, 1, 0]], np.int32)
  targets = np.array([[8, 2, 1], [4, 1, 0]], np.int32)
  with torch.no_grad():
    found = theirs(
      input_ids=torch.tensor(inputs).long(),
      attention_mask=torch.tensor(inputs != 0).long(),
      labels=torch.tensor(np.where(targets, targets, -100)).long(),
    ).logits.numpy()
  ours = np.asarray(model.logits(inputs, targets, prompt=prompt))
  assert np.abs(ours - np.asarray(model.logits(inputs, targets))).max() > 1e-2
  mine = targets != 0
  np.testing.assert_allclose(found[mine], ours[mine], atol=1e-4)
