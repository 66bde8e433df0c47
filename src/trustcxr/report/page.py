"""The page: gather what the study folder holds, and fill the template."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.about import NOTICE
from trustcxr.errors import UserError
from trustcxr.report import alarms, answers, cards, methods, ranking, single_page, summary, words, written
from trustcxr.report.figures import accuracy, calibration, certified, legends, pictures, svg, training
from trustcxr.report.figures import saliency as saliency_figures
from trustcxr.report.figures.saliency import explanation_dots
from trustcxr.report.study_folder import Run, StudyFolder, read
from trustcxr.report.tables import certified as certified_table
from trustcxr.report.tables import (
    comparisons,
    confusion,
    leaderboard,
    lesions,
    models,
    provenance,
    robustness,
    saliency,
    seeds,
)
from trustcxr.results import files, folders, stretches
from trustcxr.results.documents import DataDescription, Document, StudyDocument

if TYPE_CHECKING:
    from markupsafe import Markup

Parts = dict[str, Any]  # what the template shows, by its name there


@dataclass(frozen=True)
class Section:
    """A part of the page, by its anchor and heading."""

    key: str
    title: str


_SECTIONS = (
    Section("summary", "Summary"),
    Section("alarms", "Alarms"),
    Section("words", "In more words"),
    Section("leaderboard", "Leaderboard"),
    Section("accuracy", "Clean and perturbed, at a glance"),
    Section("epsilon", "Accuracy against epsilon"),
    Section("proved", "What no attack can take"),
    Section("corruptions", "What real films suffer"),
    Section("calibration", "Can the stated probability be believed"),
    Section("confusion", "What is taken for what"),
    Section("classes", "Class by class"),
    Section("training", "Training curves"),
    Section("explanations", "Where the networks look"),
    Section("panels", "Heatmaps, side by side"),
    Section("comparisons", "Standard against robust"),
    Section("shortcuts", "Shortcuts"),
    Section("other", "Other data"),
    Section("data", "The data"),
    Section("methods", "Methods, in words"),
    Section("made", "How it was made"),
)
# These are left out where there is nothing for them.
_OPTIONAL = {
    "words": ("points",),
    "proved": ("proved",),
    "shortcuts": ("shortcuts", "planted"),
    "other": ("other_data",),
    "methods": ("methods",),
}


def write(study_folder: Path, *, tables: bool = False) -> Path:
    """Write report.html into the folder of a study, or of one tested run, and return its path.

    `tables`: also each of its tables, as CSV and LaTeX, into report-tables/.
    Reads study.json, and of each run metrics.json, history.csv, predictions.parquet, saliency.parquet and panels.npz;
    a part that is missing leaves a dash or a line that says so. The page is one file without outside addresses,
    whole without its script. Each trained run gets its model card. Raises UserError where the folder holds neither a
    readable study.json nor a run's metrics.json.
    """
    found = read(Path(study_folder))
    parts = gather(found)
    page = filled(parts)
    if tables:
        written.write(parts, found.path / written.FOLDER)
    for run in found.runs:
        _write_card(run.folder)
    target = found.path / folders.REPORT_FILE
    with files.replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _write_card(folder: Path) -> None:
    """The model card of a trained run; none of a run.yaml that cannot be read, which the page names."""
    if not all((folder / name).is_file() for name in (folders.RUN_FILE, folders.WEIGHTS_FILE)):
        return
    try:
        files.read_yaml(folder / folders.RUN_FILE)
    except UserError:
        return
    cards.write(folder)


def render(found: StudyFolder) -> str:
    """The page as text. The same folder gives the same text."""
    return filled(gather(found))


def filled(parts: Parts) -> str:
    """The template with its parts."""
    return single_page.filled("report.html.j2", parts)


def gather(found: StudyFolder) -> Parts:
    """All that the page shows."""
    head = ranking.headline(found.study, found.runs)
    runs = ranking.ordered(found.runs, head)
    parts: Parts = {"head": head, "single": len(runs) == 1}
    parts |= _front(found, runs, head) | _results(found, runs, head) | _looks(found, runs) | _provenance(found, runs)
    parts |= _robustness(runs, head)
    parts["sections"] = [s for s in _SECTIONS if s.key not in _OPTIONAL or any(parts[k] for k in _OPTIONAL[s.key])]
    parts["notes"] = found.notes  # last: reading the parts may have added to it
    return parts


def _drawn(drawing: svg.Drawing | None, key: str) -> "Markup | None":
    """A drawing as markup; its texts are escaped as it is drawn."""
    from markupsafe import Markup

    return None if drawing is None else Markup(svg.inline(drawing, key))


def _all_drawn(drawings: Iterable[svg.Drawing | None], key: str) -> "list[Markup]":
    marks = (_drawn(drawing, f"{key}{place}") for place, drawing in enumerate(drawings))
    return [mark for mark in marks if mark is not None]


def _front(found: StudyFolder, runs: list[Run], head: ranking.Headline) -> Parts:
    """Title, notice, summary and alarms."""
    study, findings = found.study, alarms.find(found, runs)
    made = [
        f"Study “{study.study if 'study' in study else found.path.name}”",
        f"created {study.created[:16].replace('T', ' ')}" if study.created else "",
        f"TrustCXR {study.trustcxr}" if study.trustcxr else "",
    ]
    return {
        "title": study.title or study.study or "A study of chest X-ray classifiers",
        "notice": study.notice or NOTICE,
        "meta": " · ".join(filter(None, made)),
        "files": _files(found.path),
        "alarms": findings,
        "asked": answers.asked(runs, head),
        "sentences": answers.sentences(study, runs, head),
        "models": models.models(runs, head),
        "points": summary.points(study, runs, head),
    }


def _files(folder: Path) -> str:
    """What the page's numbers are read from, of a study or of one run."""
    of_study = (folder / folders.STUDY_RESULTS).is_file()
    names = (folders.STUDY_RESULTS,) if of_study else (folders.METRICS_FILE, folders.TRAINING_FILE)
    there = [name for name in (*names, folders.DATA_CHECK_FILE) if (folder / name).is_file()]
    return f"{', '.join(there)} and the tables {'in runs/ ' if of_study else ''}beside it"


def _results(found: StudyFolder, runs: list[Run], head: ranking.Headline) -> Parts:
    """Leaderboard, accuracy figures, confusion, classes and training curves."""
    under = "the lowest accuracy under any of these attacks in whole percent, then clean accuracy"
    order = under if head.strongest else "clean accuracy"
    attacked = [run for run in runs if run.attacks]
    epsilons = accuracy.radii(runs)
    curves = (accuracy.epsilon_curves(model, group) for model, group in ranking.by_model(attacked).items())
    per_class = [(run, leaderboard.per_class(run, head.classes)) for run in runs if run.clean.per_class]
    return {
        "leaderboard": leaderboard.leaderboard(runs, head),
        "over_seeds": seeds.over_seeds(found.study),
        "order_note": f"Ordered by {order}.",
        "dots": _drawn(accuracy.accuracy_dots(runs, head), "dots") if runs else None,
        "dots_legend": legends.shown(legends.accuracy(head)),
        "curves": _all_drawn(curves, "eps"),
        "curve_legend": legends.shown(legends.curves(attacked)),
        "uneven_axis": bool(epsilons) and accuracy.is_wide(epsilons),
        "sweeps": leaderboard.sweeps(attacked),
        "matrices": [m for m in (confusion.of(run, head) for run in runs) if m is not None],
        "per_class": [{"title": run.label, "table": table} for run, table in per_class],
        "histories": _all_drawn(map(training.training_curve, runs), "fit"),
        "history_legend": legends.shown(training.LEGEND),
    }


def _robustness(runs: list[Run], head: ranking.Headline) -> Parts:
    """What is proved, corruptions, the verdict on masking, calibration, planted shortcuts, other data."""
    return {
        "proved": certified_table.proved(runs),
        "proof_bars": _drawn(certified.bars(runs), "proof"),
        "proof_legend": legends.shown(certified.LEGEND),
        "by_intervals": certified_table.by_intervals(runs),
        "corrupted": robustness.corrupted(runs),
        "heats": robustness.heats(runs),
        "masking": robustness.masking(runs),
        "calibration": robustness.calibration(runs, head),
        "reliability": _all_drawn((calibration.reliability(run, head) for run in runs), "rel"),
        "reliability_legend": legends.shown(calibration.LEGEND),
        "planted": robustness.planted(runs),
        "other_data": robustness.other_data(runs),
        "other_data_by_group": robustness.other_data_by_group(runs),
    }


def _looks(found: StudyFolder, runs: list[Run]) -> Parts:
    """Explanations, panels, comparisons and shortcuts."""
    rows = found.study.comparisons
    accuracies = [row for row in rows if not row.method]
    measures = list(dict.fromkeys(row.measure for row in accuracies))
    forests = (accuracy.forest(name, [row for row in accuracies if row.measure == name]) for name in measures)
    by_method = saliency_figures.forests(rows)
    return {
        "explanations": leaderboard.explanations(runs),
        "explanations_perturbed": leaderboard.explanations(runs, perturbed=True),
        "localisation": _drawn(explanation_dots(runs), "localisation"),
        "localisation_legend": legends.shown(legends.localisation(runs)),
        "maps_show": saliency.shown(runs),
        "all_measures": saliency.measures(runs),
        "over_controls": saliency.over_controls(runs),
        "by_lesion": saliency.by_lesion(runs),
        "lesion_effects": lesions.effects(runs),
        "lesions_sampled": lesions.sampled(runs),
        "lesion_effects_by_size": lesions.by_size(runs),
        "stability": saliency.stability(runs),
        "changes": saliency.changes(runs),
        "faithfulness": saliency.faithfulness(runs),
        "sanity": _all_drawn(saliency_figures.sanity(runs), "sanity"),
        "verdicts": saliency.verdicts(found.study),
        "saliency_forests": [(name, _drawn(one, f"forests{i}")) for i, (name, one) in enumerate(by_method)],
        "gallery": pictures.gallery(runs),
        "colour_bar": pictures.colour_bar(),
        "comparisons": comparisons.comparisons(found.study),
        "forests": _all_drawn(forests, "forest"),
        "shortcuts": leaderboard.shortcuts(runs),
    }


def _provenance(found: StudyFolder, runs: list[Run]) -> Parts:
    """Data, recipe, hardware and times."""
    import yaml

    study = found.study
    facts = _facts(study.hardware)
    facts += [("Time in all", words.seconds(study.seconds)), ("TrustCXR", _fact(study.trustcxr))]
    facts += list(_came_from(study, runs))
    facts += [fact for fact in _facts(study.versions) if fact[0] != "Trustcxr"]
    chosen, split = words.count(study.selection.count), study.selection.split or words.DASH
    return {
        "data_line": _data_line(study.data),
        "check": found.check,
        "check_findings": provenance.check(found.check),
        "check_probes": provenance.probes(found.check),
        "methods": methods.paragraphs(study, runs),
        "counts": provenance.counts(study, ranking.headline(study, runs).classes),
        "facts": facts,
        "training": provenance.training(runs),
        "refit": any(run.metrics.training.refit for run in runs),
        "selection": provenance.selection(study),
        "selection_line": f"The best {chosen} on the split “{split}”, not on the test images.",
        "left_out": _left_out(study),
        "recipe": yaml.safe_dump(study.recipe, sort_keys=False, allow_unicode=True) if study.recipe else "",
    }


def _left_out(study: StudyDocument) -> str:
    """Networks that were meant to be among them, and could not be trained; empty where there are none."""
    told = "; ".join(f"{run.run} ({run.reason or 'why is not known'})" for run in study.selection.left_out)
    return f"Left out of the study, as they could not be trained: {told}." if told else ""


def _came_from(study: StudyDocument, runs: list[Run]) -> Iterator[tuple[str, str]]:
    """The commit, seeds and films, as far as they were noted."""
    if study.source:
        changed = ", with changes since" if study.source.get("changed") else ""
        yield "Source", f"commit {study.source.get('commit')}{changed}"
    found = stretches.elsewhere([run.folder for run in runs], dict(study.hardware.items()), study.source)
    yield from ((f"Runs were trained {name}", said) for name, said in found.items())
    if seeds := sorted({run.metrics.seed for run in runs if run.metrics.seed is not None}):
        yield "Seeds", ", ".join(map(str, seeds))
    if study.data.fingerprint:
        yield "Films, fingerprint", study.data.fingerprint


def _data_line(data: DataDescription) -> str:
    size = words.count(data.size)
    line = (
        f"“{data.root_name or words.DASH}”, layout {data.layout or words.DASH}, pictures brought to {size} × {size} "
        f"pixels. Files that could not be read and were left out: {words.count(data.skipped)}."
    )
    if data.groups:
        groups = ", ".join(f"{split} {words.count(number)}" for split, number in data.groups.items())
        line += f" Groups (patients, where known): {groups}."
    return line + "".join(f" {words.capital(note)}." for note in data.notes)


def _facts(document: Document | Mapping[str, str]) -> list[tuple[str, str]]:
    return [(key.replace("_", " ").capitalize(), _fact(value)) for key, value in document.items()]


def _fact(value: object) -> str:
    return words.DASH if value is None or value == "" else str(value)
