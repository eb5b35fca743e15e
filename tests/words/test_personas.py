"""Tables of tasks that start as repeated words; staged forms of methods by gin."""

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
from word_tools import SPEC, TABLE, C, run

from prompt_tuning.core import describe
from prompt_tuning.core.context import Code
from prompt_tuning.engine import config
from prompt_tuning.inits import uniform, vocabulary
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.objectives.objective import Weighted, parts
from prompt_tuning.parameterisers.task_tables import Gather

KEY = jax.random.key(0)


def test_rows_are_the_pieces_again_and_again():
  draw = vocabulary.repeated(["abc", "z", "abcdefgh"])
  found = draw(KEY, (3, 2, 7, C), SPEC)
  ids = [[3, 4, 5, 3, 4, 5, 3], [28] * 7, [3, 4, 5, 6, 7, 8, 9]]
  for k, row in enumerate(ids):
    for g in range(2):
      np.testing.assert_array_equal(found[k, g], TABLE[row])


@pytest.mark.parametrize("texts", ["abc", [], ["a", " "], ["a", 3], None])
def test_what_are_no_texts(texts):
  with pytest.raises(ValueError, match="`vocabulary.repeated.texts` is"):
    vocabulary.repeated(texts)


def test_texts_for_more_or_fewer_tables_are_refused():
  with pytest.raises(ValueError, match=r"holds 2 texts for 3 tables \(TASKS\)"):
    vocabulary.repeated(["a", "b"])(KEY, (3, 1, 4, C), SPEC)


def test_tables_are_drawn_at_once():
  word = Gather(uniform.zeros(), vocabulary.repeated(["ab", "c"]))
  code = Code(jnp.eye(2)[:, None], jnp.ones((2, 1), bool))
  drawn = word.init(KEY, code, (1, 3, C), SPEC)["params"]["table"]
  np.testing.assert_array_equal(drawn[:, 0], TABLE[[[3, 4, 3], [5, 5, 5]]])
  # A card says nothing of how tables were drawn.
  again = describe.describe(word)
  assert again == describe.describe(Gather(uniform.zeros()))
  found, _ = run(word, code, (1, 3, C), SPEC, params={"table": drawn})
  np.testing.assert_array_equal(found.prompt[1, 0], TABLE[[5, 5, 5]])


@pytest.mark.parametrize(
  ("method", "macro"), [("persona_prompt", "PERSONAS"), ("user_prompt", "CONCEPTS")]
)
def test_a_persona_starts_as_its_words(method, macro):
  texts = ["ab", "cde", "f"]
  case = tools.case(method, PROMPT_LENGTH=5, TASKS=3, **{macro: texts})
  drawn = case.model.init_prompt(KEY, tools.backbone_params(), tools.encode)
  table_VH = np.asarray(tools.BACKBONE.table(tools.backbone_params()))
  found = drawn["parameterise"]["table"]
  for k, text in enumerate(texts):
    ids = np.resize(tools.encode(text), 5)
    np.testing.assert_array_equal(found[k, 0], table_VH[ids])


# ---- staged forms


def procedure(files, *lines):
  files = [f"gin/{file}.gin" for file in ("train", "tasks/demo_sentiment", *files)]
  config.parse(files, lines, check=False)
  return config.macro("PROCEDURE")


def test_factors_are_learned_on_a_source_by_cross_entropy_alone():
  made = procedure(["methods/tfew_staged"], "SOURCE_TASK = %TASK", "SOURCE_STEPS = 7")
  source, target = made.phases
  assert isinstance(source.objective, CrossEntropy) and source.steps == 7
  assert float(source.optimizer.schedule(0)) == pytest.approx(0.0003)
  assert source.optimizer.rule.parameter_scale
  assert target.objective is None and target.start == {"prompt": "source:prompt"}
  assert isinstance(config.macro("OBJECTIVE"), Weighted)
  assert len(parts(config.macro("OBJECTIVE"))) == 3


def test_any_method_goes_through_a_source_first():
  made = procedure(
    ["methods/spt_scaled", "procedures/source_first"],
    "PROMPT_LENGTH = 4",
    "SOURCE_TASK = %TASK",
  )
  assert [phase.name for phase in made.phases] == ["source", "target"]
  assert config.macro("METHOD") == "spt_scaled"
  assert made.phases[0].optimizer is None


def test_progressive_prompts_have_a_network_each():
  made = procedure(
    ["methods/progressive_prompts"],
    "PROMPT_LENGTH = 4",
    'TASK_SEQUENCE = {"one": %TASK, "two": %TASK}',
  )
  phase = made.learning(2)
  assert phase.prompt.lengths == {"encoder": 8}
  assert all(len(part.transforms) == 1 for part in phase.prompt.prompts)
  assert phase.prompt.prompts[0].transforms[0].width == 800
  assert phase.trainable == ("prompt/of_two",)
