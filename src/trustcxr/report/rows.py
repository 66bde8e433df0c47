"""Every figure of a study, one a row, with its condition, count and interval: the CSV files beside a Markdown page."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from trustcxr.report.study_folder import Run
from trustcxr.report.written import guarded
from trustcxr.results import files
from trustcxr.results.documents import Comparison, Measures, RunDocument, Share
from trustcxr.results.tables import CLEAN

HEAD = ("run", "split", "condition", "epsilon", "effort", "measure", "value", "low", "high", "chance", "n")
Row = tuple[str | float | None, ...]


def write_figures(runs: Sequence[Run], path: Path) -> Path:
    """HEAD, and the rows of every run: of its own test images, then of other data under that name as split."""
    return _write(path, HEAD, figures(runs))


def figures(runs: Sequence[Run]) -> Iterator[Row]:
    """The rows of every run."""
    for run in runs:
        for split, document in {run.metrics.split: run.metrics, **run.evaluations}.items():
            yield from ((run.name, split, *row) for row in of_document(document))


def of_document(document: RunDocument) -> Iterator[Row]:
    """(condition, epsilon, effort, measure, value, low, high, chance, n) of one document of metrics.json."""
    for name, share in document.clean.shares():
        yield _row(CLEAN, 0, "", name, share, document.clean.n)
    for view, part in document.shortcuts.items():
        yield _row(view, 0, "", "accuracy", part.accuracy, part.n)
    for attack in document.attacks:
        yield _row(attack.attack, attack.epsilon, attack.steps or 1, "accuracy", attack.accuracy, attack.n)
    for proof in document.certified:
        yield _row("certified", proof.epsilon, "", "accuracy", proof.accuracy, proof.n)
    for found in document.corruptions:
        yield _row(found.corruption, "", found.severity, "accuracy", found.accuracy, found.n)
    if mean := document.corruptions_mean:
        yield _row("corruptions_mean", "", "", "accuracy", mean.accuracy, mean.n)
    for drop in document.drop_from_internal:
        yield _row(drop.attack, drop.epsilon, drop.steps, "drop", drop.drop, drop.n_external)
    for method, saliency in document.saliency.items():
        for told in (saliency, saliency.faithfulness or Measures()):
            for name, figure in told.figures.items():
                if figure.ci is not None:
                    yield _row(method, 0, "", name, figure, told.n, figure.chance)
        for lead in saliency.over_controls:
            of = saliency if lead.measure in saliency.figures else saliency.faithfulness or saliency
            yield _row(method, 0, "", f"{lead.measure}_less_{lead.control}", lead.difference, of.n)
    for lesion in document.lesions:
        kind = f"lesion_effect_{lesion.fill}_{lesion.control}".replace(" ", "_")
        yield _row(lesion.condition, lesion.epsilon, "", kind, lesion.effect, lesion.films)


def _row(
    condition: str,
    epsilon: float | str | None,
    effort: float | str | None,
    measure: str,
    share: Share,
    count: int | None,
    chance: float | None = None,
) -> Row:
    return condition, epsilon, effort, measure, share.value, *(share.ci or (None, None)), chance, count


def write_comparisons(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Every comparison, one a row, its keys as they stand in study.json."""
    rows: list[Mapping[str, object]] = [
        row.plain() | {"difference": row.difference.value, "difference_ci": list(row.difference.ci or ())}
        for row in comparisons
    ]
    head = list(dict.fromkeys(key for row in rows for key in row))
    return _write(path, head, ([row.get(key) for key in head] for row in rows))


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(map(guarded, rows))
    return path
