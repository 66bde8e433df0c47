"""Write the page of a study: gather its parts and fill the template."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.errors import UserError
from trustcxr.report import alarm_list, formatting, html, key_findings, methods_text, model_card, ranking
from trustcxr.report.figures import accuracy, calibration, heatmaps, svg, training_curves
from trustcxr.report.figures import saliency as saliency_figures
from trustcxr.report.load import Run, StudyFolder, load_report
from trustcxr.report.tables import accuracy as accuracy_tables
from trustcxr.report.tables import certified as certified_table
from trustcxr.report.tables import comparisons, lesions, provenance, robustness, saliency, table
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import StudyDocument
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    from markupsafe import Markup

Parts = dict[str, Any]  # of the page, by their names in the template

# These sections are left out if all of their parts are empty.
_OPTIONAL = {
    "proved": ("proved",),
    "comparisons": ("several",),
    "shortcuts": ("shortcuts", "planted"),
    "other": ("other_data",),
    "methods": ("methods",),
}


def write(study_folder: Path, *, tables: bool = False) -> Path:
    """Write report.html into the folder of a study or of one tested run, and model cards; return its path.

    `tables`: also write each table as CSV, LaTeX and Markdown into report-tables/. A missing part leaves a dash or a
    sentence. The page is one file that loads nothing. Raises UserError if the folder has no readable study.json and no
    metrics.json of a run.
    """
    study = load_report(Path(study_folder))
    parts = gather_parts(study)
    page = html.fill_template("report.html.j2", parts)  # the same folder gives the same text
    if tables:
        table.write_tables(table.find_tables(parts), study.path / table.FOLDER)
    for run in study.runs:
        _write_card(run.folder)
    target = study.path / layout.REPORT_FILE
    atomic.write_text(target, page)
    return target


def _write_card(folder: Path) -> None:
    """Write the model card of a trained run, unless its run.yaml cannot be read, which the page names."""
    if not all((folder / name).is_file() for name in (layout.RUN_FILE, layout.WEIGHTS_FILE)):
        return
    try:
        atomic.read_yaml(folder / layout.RUN_FILE)
    except UserError:
        return
    model_card.write(folder)


def gather_parts(folder: StudyFolder) -> Parts:
    """Return all parts of the page."""
    head = ranking.choose_headline(folder.study, folder.runs)
    runs = ranking.rank_runs(folder.runs, head)
    parts: Parts = {"head": head, "several": len(runs) > 1}
    parts |= _front(folder, runs, head) | _results(folder, runs, head) | _robustness(runs, head)
    parts |= _explanations(folder, runs) | _provenance(folder, runs)
    parts["questions"] = list(_list_questions(parts))
    parts["notes"] = folder.notes  # last: reading the parts may add notes
    return parts


def _list_questions(parts: Parts) -> Iterator[Parts]:
    """Yield the questions of the page with their sections, without sections that are empty."""
    for question in html.read_yaml("questions.yaml"):
        sections = question["sections"].items()
        shown = {name: head for name, head in sections if any(parts[k] for k in _OPTIONAL.get(name, ("head",)))}
        if not parts["several"] and "leaderboard" in shown:
            shown["leaderboard"] = "Figures"
        if shown:
            title = question["title"] if parts["several"] else question.get("of_one", question["title"])
            yield {"key": question["key"], "title": title, "sections": shown}


def _drawn(drawing: svg.Drawing | None, key: str) -> "Markup | None":
    """Return a drawing as markup; its texts are escaped as it is drawn."""
    from markupsafe import Markup

    return None if drawing is None else Markup(svg.render_inline(drawing, key))


def _all_drawn(drawings: Iterable[svg.Drawing | None], key: str) -> "list[Markup]":
    marks = (_drawn(drawing, f"{key}{number}") for number, drawing in enumerate(drawings))
    return [mark for mark in marks if mark is not None]


def _front(folder: StudyFolder, runs: list[Run], head: ranking.Headline) -> Parts:
    study = folder.study
    meta = [
        f"Study “{study.study or folder.path.name}”",
        f"created {study.created[:16].replace('T', ' ')}" if study.created else "",
        f"TrustCXR {study.trustcxr}" if study.trustcxr else "",
    ]
    return {
        "title": study.title or study.study or "A study of chest X-ray classifiers",
        "notice": study.notice or NOTICE,
        "meta": " · ".join(filter(None, meta)),
        "files": _list_files(folder.path),
        "alarms": alarm_list.gather_alarms(folder, runs),
        "compared": key_findings.describe_compared(runs, head),
        "answers": key_findings.summarise(study, runs, head),
        "models": accuracy_tables.models(runs, head),
    }


def _list_files(folder: Path) -> str:
    """Return the files of the page's numbers, for a study or for one run."""
    of_study = (folder / layout.STUDY_RESULTS).is_file()
    names = (layout.STUDY_RESULTS,) if of_study else (layout.METRICS_FILE, layout.TRAINING_FILE)
    present = [name for name in (*names, layout.DATA_CHECK_FILE) if (folder / name).is_file()]
    return f"{', '.join(present)} and the tables in {'runs/' if of_study else 'this folder'}"


def _results(folder: StudyFolder, runs: list[Run], head: ranking.Headline) -> Parts:
    under = "lowest accuracy under these attacks in whole percent, then by "
    attacked = [run for run in runs if run.attacks]
    epsilons = accuracy.radii(runs)
    dots = accuracy.accuracy_dots(runs, head) if runs else None
    curves = [accuracy.epsilon_curves(model, group) for model, group in ranking.group_by_model(attacked).items()]
    histories = [training_curves.training_curve(run) for run in runs]
    return {
        "leaderboard": accuracy_tables.leaderboard(runs, head),
        "over_seeds": comparisons.over_seeds(folder.study),
        "order_note": f"Ordered by {under if head.strongest else ''}clean accuracy.",
        "dots": _drawn(dots, "dots"),
        "dots_legend": svg.legend([dots]),
        "curves": _all_drawn(curves, "eps"),
        "curve_legend": svg.legend(curves),
        "uneven_axis": bool(epsilons) and accuracy.is_wide(epsilons),
        "sweeps": accuracy_tables.sweeps(attacked),
        "matrices": [matrix for run in runs for matrix in accuracy_tables.matrices(run, head)],
        "per_class": [accuracy_tables.per_class(run, head.classes) for run in runs if run.clean.per_class],
        "histories": _all_drawn(histories, "fit"),
        "history_legend": svg.legend(histories),
    }


def _robustness(runs: list[Run], head: ranking.Headline) -> Parts:
    bars = accuracy.proof_bars(runs)
    diagrams = [calibration.reliability(run, head) for run in runs]
    return {
        "proved": certified_table.proved(runs),
        "proof_bars": _drawn(bars, "proof"),
        "proof_legend": svg.legend([bars]),
        "proof_scope": certified_table.SCOPE,
        "by_intervals": certified_table.by_intervals(runs),
        "corrupted": robustness.corrupted(runs),
        "heats": robustness.heats(runs),
        "masking": robustness.masking(runs),
        "calibration": robustness.calibration(runs, head),
        "reliability": _all_drawn(diagrams, "rel"),
        "reliability_legend": svg.legend(diagrams),
        "planted": robustness.planted(runs),
        "other_data": robustness.other_data(runs),
        "other_data_by_group": robustness.other_data_by_group(runs),
    }


def _explanations(folder: StudyFolder, runs: list[Run]) -> Parts:
    rows = folder.study.comparisons
    by_method = saliency_figures.forests(rows)
    dots = saliency_figures.explanation_dots(runs)
    return {
        "explanations": accuracy_tables.explanations(runs),
        "explanations_perturbed": accuracy_tables.explanations(runs, perturbed=True),
        "localisation": _drawn(dots, "localisation"),
        "localisation_legend": svg.legend([dots]),
        "maps_show": saliency.shown(runs),
        "all_measures": saliency.measures(runs),
        "over_baselines": saliency.over_baselines(runs),
        "by_lesion": saliency.by_lesion(runs),
        "least_lesion_effects": lesions.reported(runs),
        "lesion_effects": lesions.effects(runs),
        "lesions_sampled": lesions.sampled(runs),
        "lesion_effects_by_size": lesions.by_size(runs),
        "stability": saliency.stability(runs),
        "changes": saliency.changes(runs),
        "faithfulness": saliency.faithfulness(runs),
        "sanity": _all_drawn(saliency_figures.sanity(runs), "sanity"),
        "verdicts": saliency.verdicts(folder.study),
        "saliency_forests": [(name, _drawn(one, f"forests{i}")) for i, (name, one) in enumerate(by_method)],
        "gallery": heatmaps.build_gallery(runs),
        "maps_file": layout.EXAMPLES_FILE,
        "colour_bar": heatmaps.colour_bar(),
        "comparisons": comparisons.comparisons(folder.study),
        "forests": _all_drawn(accuracy.forests(rows), "forest"),
        "shortcuts": accuracy_tables.shortcuts(runs),
    }


def _provenance(folder: StudyFolder, runs: list[Run]) -> Parts:
    import yaml

    study = folder.study
    facts = _facts(study.hardware.model_dump(exclude_unset=True))
    facts += [("Time in all", formatting.seconds(study.seconds)), ("TrustCXR", _fact(study.trustcxr))]
    facts += list(_list_origin(study, runs))
    facts += [fact for fact in _facts(study.versions) if fact[0] != "Trustcxr"]
    return {
        "study": study,
        "f": formatting,
        "check": folder.check,
        "check_findings": provenance.data_check_table(folder.check),
        "check_probes": provenance.probes(folder.check),
        "methods": methods_text.write_methods(study, runs),
        "counts": provenance.counts(study, ranking.choose_headline(study, runs).classes),
        "facts": facts,
        "training": provenance.training(runs),
        "refit": any(run.metrics.training.refit for run in runs),
        "selection": provenance.selection(study),
        "recipe": yaml.safe_dump(study.recipe, sort_keys=False, allow_unicode=True) if study.recipe else "",
    }


def _list_origin(study: StudyDocument, runs: list[Run]) -> Iterator[tuple[str, str]]:
    """Yield commit, other hardware, seeds and data fingerprint, if recorded."""
    if study.source:
        changed = ", with local changes" if study.source.get("changed") else ""
        yield "Source", f"commit {study.source.get('commit')}{changed}"
    yield from (
        (f"Runs were trained {name}", text) for name, text in methods_text.trained_elsewhere(study, runs).items()
    )
    if seeds := sorted({run.metrics.seed for run in runs if run.metrics.seed is not None}):
        yield "Seeds", ", ".join(map(str, seeds))
    if study.data.fingerprint:
        yield "Images, fingerprint", study.data.fingerprint


def _facts(values: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(key.replace("_", " ").capitalize(), _fact(value)) for key, value in values.items()]


def _fact(value: object) -> str:
    return formatting.DASH if value is None or value == "" else str(value)
