"""Every macro of the library's gin files: what it may be, and what it does.

A new macro is one row of `TABLE`: its kind (see `engine.kinds`), its meaning, and
where the kind cannot say it, the fix. Defaults stand in the gin files alone. A macro
that one method or procedure brings is no row here but a line in the head of its file:

  # RANK: a whole number from 1; ranks of each change.
"""

import dataclasses
import re
from typing import Any

from prompt_tuning.engine import library
from prompt_tuning.engine.kinds import (
  Kind,
  Made,
  choice,
  flag,
  lengths,
  made,
  mapping,
  number,
  optional,
  path,
  sequence,
  text,
  texts,
  whole,
)


@dataclasses.dataclass(frozen=True)
class Row:
  """Attributes:
  kind: what fits. meaning: what the macro does.
  fix: a sentence for who gave something else.
  later: None may stand there until a verb runs, for those that bring their own.
  """

  kind: Kind
  meaning: str
  fix: str = ""
  later: bool = False


def _is_pair(item: Any) -> bool:
  return isinstance(item, (list, tuple)) and len(item) == 2


def _is_rule(item: Any) -> bool:
  if not _is_pair(item):
    return False
  axes = item[1] if isinstance(item[1], (list, tuple)) else (item[1] or "",)
  return isinstance(item[0], str) and all(isinstance(axis, str) for axis in axes)


def _is_rates(value: Any) -> bool:
  if isinstance(value, (list, tuple)):
    return bool(value) and all(map(_number_above_0.fits, value))
  return value in ("proportional", "equal") if isinstance(value, str) else False


_share = number(low=0, below=1)
_rules = sequence('(("batch", ("replica", "data")),)', _is_rule)
_init = made("@uniform.symmetric()", function=True)
_number_above_0 = number(above=0)
_made_schedule = made("@optimizer.constant()", function=True)

TABLE: dict[str, Row] = {
  # Places and parts of a run.
  "MODEL_DIR": Row(path(), "folder of a run", later=True),
  "TASK": Row(
    made("@files.Files()"), "what is learned", "Include a file of gin/tasks/.", True
  ),
  "METHOD": Row(text(), "name of the method, for the card"),
  "BACKBONE": Row(optional(made("@backbone.T5()")), "architecture of the frozen model"),
  "INITIAL_CHECKPOINT_PATH": Row(optional(path()), "weights that a run starts from"),
  "VOCABULARY": Row(
    optional(
      path(
        words="a path of a spiece.model or a tokenizer.json, as text in quotes, "
        "'bytes', or an object that gin makes, such as @vocabularies.from_file()"
      )
    ),
    "tokeniser of the backbone",
  ),
  "VOCABULARY_FILE": Row(path(), "SentencePiece file of the tokeniser"),
  "PROMPT": Row(optional(made("@prompt.Prompt()")), "what writes the prompt"),
  "PROMPT_PLACE": Row(
    optional(choice("front", "after_first", "end", "mark")),
    "where the prompt stands in an input; None for the backbone's own place",
  ),
  "HEAD": Row(
    optional(made("@pooled.Pooled()")),
    "what answers in other than words",
    "Include gin/heads/pooled.gin.",
  ),
  "HEAD_POOL": Row(text(), 'what a head reads, such as "mean" or "first"'),
  "HEAD_FORM": Row(choice("linear", "dense_tanh"), "layers of a head"),
  "HEAD_DROPOUT": Row(_share, "share of a head's inputs that training drops"),
  "OBJECTIVE": Row(made("@cross_entropy.CrossEntropy()"), "what training lowers"),
  "OUTPUT": Row(
    optional(made("@choice.Choice()")),
    "how answers are made",
    "Include a file of gin/outputs/.",
  ),
  "RECIPE": Row(made("@recipe.Recipe()"), "how a run trains, as one record"),
  "PROCEDURE": Row(
    optional(made("@staged.Staged()")), "the phases of a run; None for one"
  ),
  "READING": Row(made("@recipe.Reading()"), "how examples become rows"),
  "TRAINABLE": Row(texts('("prompt",)'), "branches of the parameters that train"),
  # Numbers of a run.
  "TRAIN_STEPS": Row(whole(0), "steps in all; 0 evaluates only"),
  "BATCH_SIZE": Row(whole(1), "rows of a training step"),
  "EVAL_BATCH_SIZE": Row(whole(1), "rows of an evaluation batch"),
  "EVAL_PERIOD": Row(whole(0), "steps between evaluations; 0 for only at the end"),
  "SAVE_PERIOD": Row(
    optional(whole(0)), "steps between checkpoints; 0 for only at the end, None chooses"
  ),
  "LOG_PERIOD": Row(whole(0), "steps between lines of metrics; 0 for only at the end"),
  "EVAL_EXAMPLES": Row(
    optional(whole(1)), "validation examples used while training; None for all"
  ),
  "BEST_METRIC": Row(text(), "validation score that chooses the best step"),
  "PATIENCE": Row(
    whole(0), "evaluations without a new best before training stops; 0 for never"
  ),
  "MICROBATCHES": Row(whole(1), "parts that a batch is divided into"),
  "PACK_SEGMENTS": Row(whole(1), "most examples in one row; 1 pads"),
  "BUCKETS": Row(whole(1), "lengths of batches where rows are padded"),
  "CACHE_CODES": Row(flag(), "make the frozen encoder's codes once, before training"),
  "TASK_FEATURE_LENGTHS": Row(lengths(), "longest input and target, in tokens"),
  "TRUNCATE": Row(flag(), "cut examples that are too long instead of refusing them"),
  "DROPOUT_RATE": Row(_share, "share that the backbone's layers drop in training"),
  "SEED": Row(whole(0, 2**32 - 1), "of the prompt, the order and the dropout"),
  "TENSORBOARD": Row(flag(), "write TensorBoard events too"),
  # The objective and the optimiser.
  "LEARNING_RATE": Row(
    _number_above_0, "rate at its height", "To train nothing, set TRAIN_STEPS = 0."
  ),
  "TASK_LEARNING_RATE": Row(
    number(low=0), "rate of the task prompt beside a generator"
  ),
  "WARMUP_STEPS": Row(whole(0), "steps over which the rate rises"),
  "Z_LOSS": Row(number(low=0), "weight of the squared log of the softmax's sum"),
  "LABEL_SMOOTHING": Row(_share, "probability spread over the other tokens"),
  "MOST_LOGITS": Row(whole(1, 2**62), "numbers of the logits that are held at once"),
  "SCHEDULE": Row(_made_schedule, "learning rate by step"),
  "RULE": Row(made("@optimizer.Adafactor()", function=True), "rule of the optimiser"),
  "OPTIMIZER": Row(made("@optimizer.Optimizer()"), "rule, schedule and clipping"),
  "CLIP_NORM": Row(
    optional(_number_above_0),
    "largest norm of the gradient",
    "For no clipping set CLIP_NORM = None.",
  ),
  "BRANCH_SCHEDULES": Row(
    mapping('{"prompt": @optimizer.constant()}', lambda value: isinstance(value, Made)),
    "schedules of branches that have their own: short for GROUPS",
  ),
  "TEACHERS": Row(
    mapping('{"name": "folder/of/its/prompt"}', lambda value: isinstance(value, str)),
    "prompts that the objective learns from",
  ),
  "GROUPS": Row(
    mapping('{"prompt/task": @groups.Group()}', lambda value: isinstance(value, Made)),
    "rule, schedule, decay and clipping of branches that have their own",
  ),
  # Devices.
  "SHARDING": Row(made("@sharding.Sharding()"), "the mesh and what it divides"),
  "NUM_PARTITIONS": Row(optional(whole(1)), "devices of the mesh axis model"),
  "MODEL_PARALLEL_SUBMESH": Row(
    optional(sequence("(2, 2, 1, 1)", whole(1).fits)), "T5X's other form of the same"
  ),
  "REPLICAS": Row(whole(1), "devices of the mesh axis replica"),
  "AXIS_RULES": Row(_rules, "which named axes are divided over which mesh axes"),
  "TRAINABLE_RULES": Row(_rules, "the same for what trains"),
  # Backbones.
  "VOCAB_SIZE": Row(whole(1), "rows of the token table"),
  "EMB_DIM": Row(whole(1), "width of the backbone"),
  "NUM_HEADS": Row(whole(1), "heads of attention"),
  "HEAD_DIM": Row(whole(1), "width of a head"),
  "MLP_DIM": Row(whole(1), "width of the feed-forward layers"),
  "NUM_LAYERS": Row(whole(1), "blocks of the one stack"),
  "POSITIONS": Row(whole(1), "rows of the table of positions"),
  "POOLER": Row(flag(), "whether an encoder has a pooler"),
  "MLM_HEAD": Row(flag(), "whether an encoder has a head of masked words"),
  "KIND": Row(choice("bert", "roberta", "xlm-roberta"), "which encoder it is"),
  "MASK_ID": Row(whole(0), "the id that stands for a masked word"),
  "NUM_ENCODER_LAYERS": Row(whole(1), "blocks of the encoder"),
  "NUM_DECODER_LAYERS": Row(whole(1), "blocks of the decoder"),
  "ACTIVATION_DTYPE": Row(
    choice("float32", "bfloat16", "float16"), "numbers that are computed with"
  ),
  "WEIGHTS_DTYPE": Row(
    optional(choice("float32", "bfloat16", "int8")), "to cast weights to when read"
  ),
  "SCAN_LAYERS": Row(flag(), "stack the layers and compile one of them"),
  "REMAT_POLICY": Row(
    choice("none", "full", "dots"), "what the backward pass computes anew"
  ),
  "ATTENTION": Row(choice("xla", "cudnn", "pallas"), "what computes attention"),
  # Methods and initialisations.
  "PROMPT_LENGTH": Row(
    whole(1, 4096),
    "positions reserved for the prompt",
    "For a model without a prompt include gin/methods/unprompted.gin.",
  ),
  "TASK_LENGTH": Row(whole(1, 4096), "positions of the task prompt"),
  "PROMPT_INIT": Row(_init, "how the prompt's table starts"),
  "PROMPT_SCALE": Row(number(low=0), "bound of the uniform draw"),
  "PROMPT_FILE": Row(path(), "array that the prompt starts from"),
  "PROMPT_TENSOR": Row(optional(text()), "its name in a safetensors file"),
  "PROMPT_TEXT": Row(text(), "words that the prompt starts from"),
  "VOCABULARY_POPULATION": Row(whole(1), "most frequent tokens that rows come from"),
  "TABLE_INIT": Row(_init, "how the private table starts"),
  "TABLE_SCALE": Row(number(low=0), "bound of its uniform draw"),
  "PRETRAINED_TABLE": Row(path(), "array that the private table starts from"),
  "INSTANCE_SCALE": Row(number(), "weight of what is generated from the input"),
  "GENERATOR_WIDTH": Row(whole(1), "width of the generator's hidden layer"),
  "GENERATOR_DROPOUT": Row(_share, "share that the generator drops in training"),
  "LSTM_UNITS": Row(whole(1), "units of an LSTM in one direction"),
  "PHM_ORDER": Row(whole(1), "order of the hypercomplex kernels"),
  "PHM_SHARED": Row(flag(), "both hypercomplex layers use the same factors"),
  "CODE_POOL": Row(
    choice("mean", "last", "first", "max", "attention"),
    "how an input becomes one vector",
  ),
  "CODE_WIDTH": Row(whole(1), "width of the vectors that the task supplies"),
  # Tasks.
  "DATA_DIR": Row(path(blank=True), "folder that relative files start at"),
  "TASK_NAME": Row(text(), "name of the task, for the card"),
  "TRAIN_FILE": Row(optional(path()), "TSV or JSONL file of the split train"),
  "VALIDATION_FILE": Row(optional(path()), "the same of the split validation"),
  "TEST_FILE": Row(optional(path()), "the same of the split test"),
  "TARGETS": Row(optional(text()), 'template of a target, such as "{label}"'),
  "LABEL_COLUMN": Row(text(), "column that LABEL_MAP applies to"),
  "LABEL_MAP": Row(
    optional(mapping('{"0": "no", "1": "yes"}')), "labels of the file to target words"
  ),
  "LABELS": Row(
    optional(texts('["negative", "positive"]')), "target words of a classification task"
  ),
  "LABEL_SEPARATOR": Row(
    optional(text()), "what stands between the labels of a target that names several"
  ),
  "INPUTS": Row(optional(text()), 'template of an input, such as "{text}"'),
  "ID_COLUMN": Row(optional(text()), "column that is kept as the id of an answer"),
  "EXTERNAL_COLUMN": Row(optional(text()), "column of vectors, lists of numbers"),
  "EXTERNAL_FILE": Row(optional(path()), "array .npy of vectors, one for each row"),
  "TASK_COLUMN": Row(optional(text()), "column of the tasks that rows belong to"),
  "PROMPT_TASK": Row(
    Kind(
      "a number from 0 or a name, in quotes, of one of the prompt's tasks, or None",
      lambda value: bool(value) if isinstance(value, str) else whole(0).fits(value),
      none=True,
      text=True,
    ),
    "task that all inputs belong to",
  ),
  "MOST_POSITIONS": Row(
    optional(whole(1)), "longest input read where training cut none; None for any"
  ),
  "QUOTED": Row(flag(), "fields of TSV files may stand in double quotes"),
  "ROWS": Row(optional(mapping('{"seed": "13"}')), "rows to keep, value by column"),
  "SHOTS": Row(optional(whole(1)), "training examples drawn of each label"),
  "SHOT_SEED": Row(whole(0), "of that draw"),
  "METRICS": Row(texts('("accuracy",)'), "scores of the task"),
  "MEMBERS": Row(
    sequence("[@sst2/files.Files()]", lambda item: isinstance(item, Made)),
    "tasks of a mixture",
  ),
  "RATES": Row(
    Kind(
      "'proportional', 'equal', a number above 0 for each task, or a rule that gin "
      "makes, such as @rates.TaskSubset()",
      _is_rates,
    ),
    "how often the tasks of a mixture are drawn",
  ),
  "RATE_CAP": Row(optional(whole(1)), "most examples of a task that rates count"),
  "RATE_TEMPERATURE": Row(_number_above_0, "1 is proportional, more is more equal"),
  "SUBSET_LEAST": Row(whole(1), "tasks drawn for a batch at the least"),
  "SUBSET_MOST": Row(optional(whole(1)), "the same at the most; None for all"),
  "GLUE_NAME": Row(text(), 'task of GLUE or SuperGLUE, such as "glue_sst2_v002"'),
  "TFDS_DATA_DIR": Row(optional(path()), "folder of TensorFlow Datasets"),
  "TFDS_VERSION": Row(optional(text()), 'version of the data, such as "2.0.0"'),
  "MIXTURE_OR_TASK_NAME": Row(optional(text()), "name in SeqIO's registry"),
  "MIXTURE_OR_TASK_MODULE": Row(optional(text()), "module whose import registers it"),
  "PRETRAIN_DIR": Row(path(), "folder of the texts of pre-training"),
  "TEXTS": Row(texts('["wiki.txt.gz"]'), "its files to train on"),
  "HELD_OUT": Row(texts('["validation.txt.gz"]'), "its files to validate on"),
  # Outputs and the other verbs.
  "DECODE_STEPS": Row(whole(1), "tokens of an answer at the most"),
  "BEAMS": Row(whole(1), "sequences that a search keeps"),
  "TEMPERATURE": Row(_number_above_0, "divides the logits before a draw"),
  "TOP_P": Row(number(above=0, high=1), "probability that the drawn tokens cover"),
  "NORMALIZE_BY_LENGTH": Row(flag(), "divide a label's log-probability by its tokens"),
  "THRESHOLD": Row(
    number(above=0, below=1), "probability from which on a label is an answer"
  ),
  "PROMPT_DIR": Row(optional(path()), "folder `prompt/` of a run"),
  "EVAL_DIR": Row(path(), "folder that scores and predictions go to"),
  "SPLIT": Row(text(), 'split of the task, such as "test"'),
  "FORCE": Row(flag(), "use a prompt that was trained on another backbone"),
  "INPUT_FILE": Row(path(), "file of inputs"),
  "OUTPUT_FILE": Row(path(), "file of answers, as JSONL"),
  # Upstream T5X.
  "CHECKPOINT_PATH": Row(path(), "checkpoint that T5X wrote"),
  "EVAL_OUTPUT_DIR": Row(path(), "folder that T5X's scores go to"),
  "INFER_OUTPUT_DIR": Row(path(), "folder that T5X's predictions go to"),
  "INFER_MODE": Row(
    choice("predict", "predict_with_aux", "score"), "what T5X writes of an example"
  ),
  "MODEL": Row(made("@model.PromptModel()"), "the sentence as a model of T5X"),
  "T5X_TASK": Row(made("@tasks.registered()"), "the task in SeqIO's registry"),
  "RANDOM_SEED": Row(whole(0, 2**32 - 1), "T5X's name for SEED"),
  "USE_CACHED_TASKS": Row(flag(), "read SeqIO's cache"),
  "ASSIGNMENT_MAP": Row(
    sequence('[("state/.*", None)]', _is_pair),
    "what of a T5X checkpoint is left out",
  ),
}

# What a line of a method's head may say that its macro is.
STATED: dict[str, Kind] = {
  "a whole number from 0": whole(0),
  "a whole number from 1": whole(1),
  "a whole number from 0, or None": optional(whole(0)),
  "a number": number(),
  "a number from 0": number(low=0),
  "a number above 0": number(above=0),
  "a number above 0, or None": optional(number(above=0)),
  "a share below 1": _share,
  "shares below 1": sequence("(0.3, 0.5)", _share.accepts),
  "a whole number from 1, or None": optional(whole(1)),
  "a task": made("@files.Files()"),
  "named tasks": mapping(
    '{"topic": @files.Files()}', lambda value: isinstance(value, Made)
  ),
  "True or False": flag(),
  "a text": text(),
  "texts": texts('["a", "b"]'),
  "a path": path(),
}


def stated() -> dict[str, Row]:
  """Rows that the heads of methods, objectives and procedures state.

  Raises:
    ValueError: for a kind that is none of `STATED`, and no list of names.
  """
  found = {}
  for name, source in library.texts().items():
    if not name.startswith(_SENTENCES):
      continue
    for macro, kind, meaning in _LINE.findall(source):
      fits = _stated_kind(kind)
      if fits is None:
        raise ValueError(
          f"{name} says that {macro} is {kind!r}; say one of {list(STATED)}, or: one "
          'of "this", "that".'
        )
      # Tasks that are asked for may be open until a verb runs.
      later = kind in ("a task", "named tasks")
      found[macro] = Row(fits, meaning, later=later)
  return found


def _stated_kind(words: str) -> Kind | None:
  if words.startswith("one of "):
    return choice(*re.findall(r'"([^"]+)"', words))
  return STATED.get(words)


_SENTENCES = ("gin/methods/", "gin/objectives/", "gin/procedures/")
_LINE = re.compile(r"^# ([A-Z][A-Z0-9_]+): ([^;\n]+); (.+?)\.?$", re.MULTILINE)
TABLE |= stated()
