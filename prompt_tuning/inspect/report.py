"""report.html of a run: what it is, how it went, what it answers, how it looks."""

from typing import Any

import numpy as np

from prompt_tuning import answer
from prompt_tuning.core import files
from prompt_tuning.engine import curves, nearest
from prompt_tuning.engine.listed import Rows, cell
from prompt_tuning.inspect import drawings, maps, numbers, page
from prompt_tuning.inspect.run import Run

NAME = "report.html"


def write(run: Run, output: Any = None, count: int = 10, k: int = 5) -> Any:
  """Writes the page; returns its path.

  Args:
    run: of `inspect.run.read`. output: where; None for report.html in its folder.
    count: examples of each kind. k: nearest words of each position.

  Raises:
    ValueError: if another file stands in its way.
  """
  path = run.folder / NAME if output is None else files.at(output)
  files.check_replaceable(path, _ours)
  files.write_text(path, text(run, count, k), _ours)
  return path


def _ours(path: Any) -> bool:
  return page.MARK.encode() in files.head(path)


def text(run: Run, count: int = 10, k: int = 5) -> str:
  """The whole page."""
  session, why = _session(run)
  sections = [
    _summary(run),
    _curves(run),
    _answers(run),
    _examples(run, count),
    _map(run, session),
    _words(run, session, k),
    page.section("Not shown", page.paragraph(why)) if why else "",
  ]
  name = run.product.card.get("method") or "prompt"
  return page.page(f"{name}: {run.folder}", sections)


def _session(run: Run) -> tuple[Any, str]:
  """The prompt on its backbone, or why there is none."""
  try:
    return answer.open_session(str(run.folder)), ""
  except ValueError as error:
    return None, f"What needs the backbone: {error}"


def _summary(run: Run) -> str:
  card, task = run.product.card, run.product.card.get("task", {})
  scores = card.get("scores") or {}
  rows = [
    ("method", card.get("method")),
    ("trained numbers", cell(run.product.parameters)),
    ("backbone", card.get("backbone", {}).get("name")),
    ("fingerprint", run.product.fingerprint),
    ("task", task.get("name")),
    ("labels", task.get("labels")),
    ("inputs", (card.get("reading") or {}).get("inputs")),
    ("seed", cell(card.get("seed"))),
    ("steps", cell(card.get("steps"))),
    ("kept step", cell(card.get("step"))),
    ("validation", cell(scores) if scores else None),
    (run.split or "", cell(run.scores) if run.scores else None),
  ]
  return page.section("Summary", page.facts([row for row in rows if row[0]]))


def _curves(run: Run) -> str:
  best = run.product.card.get("step")
  figure = curves.figure(run.history, best, beside=False)
  if figure is None:
    return ""
  return page.section("Learning curves", drawings.svg(figure, "curves"))


def _answers(run: Run) -> str:
  """Confusion, scores of each class, calibration."""
  if not run.records:
    words = (
      f"No predictions yet: python -m prompt_tuning.eval {run.folder} writes them."
    )
    return page.section("Answers", page.paragraph(words))
  labels = run.product.card.get("task", {}).get("labels")
  right = sum(r["prediction"] == r["target"] for r in run.records)
  total = len(run.records)
  words = f"{right:,} of {total:,} predictions of {run.split} are the target ("
  parts = [page.paragraph(f"{words}{100 * right / total:.1f} %).")]
  if labels:
    found = numbers.confusion(run.records, labels)
    drawn = drawings.svg(drawings.matrix(found), "matrix")
    parts.append(page.beside(drawn, page.table(numbers.by_class(found))))
  sure = numbers.calibration(run.records)
  if sure is not None:
    drawn = drawings.svg(drawings.calibration(sure), "calibration")
    said = page.paragraph(
      f"Expected calibration error {100 * sure.error:.1f} %: how far, on average, the "
      "probability of an answer is from how often such answers are right. A "
      "probability is a label's share of all labels' scores."
    )
    parts.append(page.beside(drawn, said))
  return page.section(f"Answers to {run.split}", *parts)


def _examples(run: Run, count: int) -> str:
  worst, surest = numbers.examples(run.records, count)
  found = page.section("Worst answers", page.table(worst))
  return found + page.section("Surest answers", page.table(surest))


def _map(run: Run, session: Any) -> str:
  found = maps.of(session, run.records) if session and run.records else None
  if found is None:
    return ""
  ratio = ""
  if found.ratio is not None:
    ratio = f" Between labels prompts vary {found.ratio:.2g} times as much as within."
  words = page.paragraph(
    f"Each point is the prompt of one of {len(found.names)} texts, seen along the two "
    f"directions in which prompts differ most.{ratio}"
  )
  drawn = drawings.svg(drawings.points(found), "map")
  return page.section("Prompts of texts", page.beside(drawn, words))


def _words(run: Run, session: Any, k: int) -> str:
  """Nearest words and lengths of a prompt that is the same for every text."""
  module = run.product.module
  if session is None or module is None or module.reads_input:
    return ""
  if not nearest.vectors(run.product, session.loaded):
    return ""
  rows = nearest.tokens(run.product, session.loaded, k)
  table_VH = np.asarray(session.loaded.backbone.table(session.loaded.params))
  usual = float(np.median(np.linalg.norm(table_VH.astype(np.float32), axis=-1)))
  drawn = drawings.svg(drawings.norms(rows, usual), "norms")
  words = page.paragraph(
    "The words of the vocabulary whose embeddings point most nearly where a position's "
    "vector does, with the cosine. They name a direction; they are no translation."
  )
  kept = Rows(
    {"position": r["position"], "length": r["norm"], "nearest words": r["nearest"]}
    for r in rows
  )
  return page.section("Positions", drawn, words, page.table(kept))
