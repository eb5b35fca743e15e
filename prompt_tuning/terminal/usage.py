"""What each verb is for: a screen of words, shown before anything slow is imported."""

import dataclasses
import re
import sys
from collections.abc import Sequence

PROGRAM = "prompt-tuning"
WIDEST = 74


@dataclasses.dataclass(frozen=True)
class Usage:
  """Attributes:
  does: one sentence. examples: three commands that run, without the program's name.
  macros: (name, what it does) of those that are changed most.
  more: where the rest stands.
  """

  does: str
  examples: tuple[str, str, str]
  macros: tuple[tuple[str, str], ...] = ()
  more: str = ""

  def text(self, verb: str) -> str:
    """The whole screen."""
    lines = [f"{PROGRAM} {verb}: {self.does}", ""]
    lines += [
      f"  {line}"
      for example in self.examples
      for line in wrapped(f"{PROGRAM} {verb} {example}".rstrip())
    ]
    if self.macros:
      lines.append("")
      size = max(len(name) for name, _ in self.macros) + 2
      lines += [f"  {name:<{size}}{words}" for name, words in self.macros]
    return "\n".join([*lines, "", self.more or MORE])


def wrapped(command: str) -> list[str]:
  """A command in lines that fit a screen, each but the last with a backslash."""
  lines, words = [""], re.findall(r"(?:[^\s\"']|\"[^\"]*\"|'[^']*')+", command)
  for word in words:
    if len(lines[-1]) + len(word) > WIDEST:
      lines[-1] += " \\"
      lines.append("   ")
    lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
  return lines


MORE = (
  "Macros are set as --gin.NAME=value, text in quotes inside quotes. All of them:\n"
  "prompt-tuning list macros. python -m prompt_tuning.VERB takes the same flags."
)

USAGES = {
  "train": Usage(
    "tunes a prompt (or what TRAINABLE names) on a frozen backbone.",
    (
      "--data train.tsv --validation dev.tsv --input text --label label",
      "--gin_file=configs/demo/instance.gin --gin.MODEL_DIR=\"'runs/mine'\"",
      "--data train.tsv --method lora --backbone google/flan-t5-base --steps 500",
    ),
    (
      ("--data, --validation", "TSV, CSV or JSONL; --test names one for eval"),
      ("--input, --label", "a column, or a template: --input 'review: {text}'"),
      ("--method", "prompt-tuning list methods; --prompt_length positions"),
      ("--backbone", '"mini", a folder, or an id of the Hugging Face Hub'),
      ("--steps, --epochs", "how long; --learning_rate, --batch_size, --seed"),
      ("--output", "folder of the run; the same command goes on with it"),
      ("TRAIN_STEPS", "updates; LEARNING_RATE, BATCH_SIZE, SEED"),
      ("EVAL_PERIOD", "steps between evaluations; the best one is kept"),
      ("MODEL_DIR", "folder of the run, with --gin_file"),
    ),
  ),
  "eval": Usage(
    "scores a prompt on a split, and writes a prediction a line.",
    (
      "runs/mine --split test",
      "runs/mine --data fresh.tsv",
      "--gin_file=gin/eval.gin --gin_file=gin/tasks/demo_sentiment.gin"
      " --gin_file=gin/outputs/choice.gin --gin.PROMPT_DIR=\"'runs/mine/prompt'\""
      " --gin.EVAL_DIR=\"'runs/mine/eval'\"",
    ),
    (
      ("RUN", "folder of train; its config.gin says task and backbone"),
      ("--split", "train, validation (the default) or test"),
      ("--data", "another file with the same columns, as the split test"),
      ("EVAL_DIR", "where metrics-SPLIT.json and predictions-SPLIT.jsonl go"),
      ("EVAL_BATCH_SIZE", "rows of a batch"),
      ("OUTPUT", "how answers are made; a file of gin/outputs/ sets it"),
    ),
  ),
  "infer": Usage(
    "answers every input of a file, a JSON object a line.",
    (
      "runs/mine inputs.tsv",
      "runs/mine inputs.txt --output answers.jsonl",
      "--gin_file=gin/infer.gin --gin.PROMPT_DIR=\"'runs/mine/prompt'\""
      " --gin.INPUT_FILE=\"'inputs.txt'\" --gin.OUTPUT_FILE=\"'answers.jsonl'\"",
    ),
    (
      ("RUN", "folder of train, or a prompt/ folder"),
      ("--output", "where answers go; INPUTS.answers.jsonl without it"),
      ("ID_COLUMN", "a column that is kept in each answer"),
      ("LABELS", "other labels to choose among"),
      ("INPUTS", 'another template, "{text}" for a line as it is'),
    ),
  ),
  "inspect": Usage(
    "writes a run's report.html: one page, no network.",
    ("runs/mine", "runs/mine --split test", "runs/mine --output report.html"),
    (
      ("RUN", "folder of train; eval's predictions in it are shown too"),
      ("--split", "whose predictions; the last that eval wrote without it"),
      ("--output", "the page; RUN/report.html without it"),
      ("--examples", "how many of the worst and of the surest; 10"),
    ),
    "Run eval first for the confusion matrix, calibration and examples.",
  ),
  "sweep": Usage(
    "trains every point of a grid with several seeds; a table, a plot.",
    (
      '--grid "LEARNING_RATE=[0.03,0.3]" --seeds 3'
      " --gin_file=configs/demo/prompt_tuning.gin --output runs/rates",
      '--grid "PROMPT_LENGTH=[5,20]" --data train.tsv --validation dev.tsv',
      '--grid "LEARNING_RATE=[0.1,0.3]" --grid "BATCH_SIZE=[8,32]"'
      " --gin_file=configs/demo/prompt_tuning.gin",
    ),
    (
      ("--grid", "a macro and its values; several make all combinations"),
      ("--seeds", "how many, from 0; 3 without it"),
      ("--output", "folder of the sweep: one folder a run, table.json, sweep.png"),
      ("--metric", "the score that is compared; BEST_METRIC without it"),
    ),
    "The rest goes to train. The same command goes on: finished runs stay as they are.",
  ),
  "list": Usage(
    "what there is, a line each.",
    ("methods", "methods 'ipt_*'", "macros learning"),
    (
      ("methods", "what writes the prompt, and how many numbers it trains"),
      ("tasks", "task files; `files` reads your own"),
      ("backbones", "sizes that have a gin file"),
      ("recipes", "runs that are ready"),
      ("macros", "what may be set: what fits, what it does, its default"),
    ),
    "A pattern is a name with * and ?, or a word that the line holds.",
  ),
  "export": Usage(
    "writes a prompt for other libraries, or as programs that serve it.",
    (
      "--to=peft --prompt=runs/mine/prompt --output=adapter",
      "--to=numpy --prompt=runs/mine/prompt --output=mine.npy",
      "--to=stablehlo --prompt=runs/mine/prompt --output=artifact"
      " --platforms=cpu,cuda,tpu --labels negative positive",
    ),
    (
      ("--to", "numpy peft t5x t5x_orbax huggingface stablehlo savedmodel"),
      ("--prompt", "the prompt/ folder; --checkpoint another backbone"),
      ("--output", "a file (numpy) or a folder; files of others are refused"),
      ("--task", "of a prompt of many tasks, the one that is written"),
      ("--vocabulary", "the tokeniser, where none is beside the backbone"),
      ("--steps, --beams", "of what is served; --alpha, --length_penalty,"),
      ("--labels", "--normalize_by_length, --dtype, --platforms"),
    ),
    "prompt_tuning.interop.serving.load(FOLDER) answers with what stablehlo wrote.",
  ),
  "precompile": Usage(
    "compiles a run for devices that are not here: does it fit?",
    (
      "--gin_file=configs/pod/xl_prompt_tuning.gin --topology=v5e:4x4",
      "--gin_file=configs/pod/xxl_prompt_tuning.gin --topology=v5e:8x8 --search",
      "--gin_file=configs/pod/xl_ipt_mlp.gin --topology=v5e:4x4 --json=report.json",
    ),
    (
      ("--topology", "v5e:8x8, v4:4x4x4, cpu ...; needs prompt-tuning[tpu]"),
      ("--search", "also tries settings around the recipe's"),
      ("--json", "the report as data; --model_info every array"),
      ("--programs", "which of train, eval and decode"),
    ),
  ),
  "demo": Usage(
    "tunes the embedded mini T5 four ways, and prints a table.",
    ("", "--output=runs/demo", "--help"),
    (("--output", "folder of the four runs; runs/demo without it"),),
    "It takes a few minutes on two CPU cores. The same command goes on.",
  ),
}


def overview() -> str:
  """All verbs, a line each."""
  lines = [
    "prompt-tuning VERB ...: learned prompts for frozen language models.",
    "",
    *(f"  {name:<12}{usage.does}" for name, usage in USAGES.items()),
    "",
    "prompt-tuning VERB --help shows three examples. Start with one of these:",
    "",
    "  prompt-tuning demo",
    "  prompt-tuning train --data train.tsv --validation dev.tsv",
    "  prompt-tuning list methods",
  ]
  return "\n".join(lines)


def show(verb: str, argv: Sequence[str] | None = None) -> None:
  """Prints a verb's screen and ends the process, if that is what its flags ask for."""
  if {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
    print(USAGES[verb].text(verb))
    raise SystemExit(0)
