"""Write the page of a study, and its figures as files for a journal, one or two columns wide."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trustcxr.errors import unknown
from trustcxr.report import formatting, html, key_findings, methods_text, model_card
from trustcxr.report.figures import charts, pictures, svg
from trustcxr.report.load import Run, StudyFolder, load_report
from trustcxr.report.tables import accuracy, provenance, robustness, saliency, table
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import StudyDocument
from trustcxr.version import NOTICE

Parts = dict[str, Any]  # of the page, by their names in the template
FORMATS = ("pdf", "svg", "png")
WIDTHS = {"single": 89, "double": 183}  # millimetres: one and two columns of most journals

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
    for folder in (run.folder for run in study.runs):  # the page names a run.yaml that cannot be read
        if (folder / layout.WEIGHTS_FILE).is_file() and atomic.is_readable(folder / layout.RUN_FILE):
            atomic.write_text(folder / model_card.CARD_FILE, model_card.render_card(folder))
    target = study.path / layout.REPORT_FILE
    atomic.write_text(target, page)
    return target


def write_figures(folder: Path, *, kind: str = "pdf", width: str = "single", out: Path | None = None) -> list[Path]:
    """Write every figure of the page and its tables into `out`, by default STUDY/figures; return the paths.

    `kind`: pdf, svg or png. `width`: single (89 mm) or double (183 mm). Raises UserError for any other value, and if
    the folder has no study and no tested run.
    """
    for what, value, valid in (("format", kind, FORMATS), ("width", width, tuple(WIDTHS))):
        if value not in valid:
            raise unknown(what, value, valid)
    study = load_report(Path(folder))
    out, paths = Path(out or study.path / "figures"), []
    for drawing in drawings(study, narrow=width == "single"):
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in drawing.name).lstrip(".")
        path = out / f"{name}.{kind}"
        with atomic.atomic_write(path) as temporary:
            svg.save(drawing, temporary, WIDTHS[width])
        paths.append(path)
    return paths + table.write_tables(table.find_tables(gather_parts(study)), out / table.FOLDER)


def drawings(folder: StudyFolder, *, narrow: bool) -> Iterator[svg.Drawing]:
    """Yield every figure that has data, in the order of the page. `narrow`: for one column."""
    head = key_findings.choose_headline(folder.study, folder.runs)
    runs = key_findings.rank_runs(folder.runs, head)
    for group in _list_drawings(folder.study, runs, head, narrow=narrow).values():
        yield from filter(None, group)
    if sheet := pictures.draw_sheet(runs, columns=3 if narrow else 6):
        yield sheet


def _list_drawings(
    study: StudyDocument, runs: list[Run], head: key_findings.Headline, *, narrow: bool
) -> dict[str, Iterable[svg.Drawing | None]]:
    """Return the figures by their names in the template; None without data."""
    groups = key_findings.group_by_model([run for run in runs if run.attacks])
    return {
        "dots": [charts.accuracy_dots(runs, head)] if runs else [],
        "reliability": [charts.reliability(run, head) for run in runs],
        "curves": [charts.epsilon_curves(model, group) for model, group in groups.items()],
        "proof_bars": [charts.proof_bars(runs)],
        "localisation": [charts.explanation_dots(runs, narrow=narrow)],
        "sanity": charts.sanity(runs),
        "saliency_forests": charts.saliency_forests(study.comparisons, columns=2 if narrow else 4).values(),
        "forests": charts.accuracy_forests(study.comparisons),
        "histories": [charts.training_curve(run) for run in runs],
    }


def gather_parts(folder: StudyFolder) -> Parts:
    """Return all parts of the page."""
    study, head = folder.study, key_findings.choose_headline(folder.study, folder.runs)
    runs = key_findings.rank_runs(folder.runs, head)
    parts: Parts = {"head": head, "several": len(runs) > 1, "study": study, "f": formatting}
    for name, group in _list_drawings(study, runs, head, narrow=False).items():
        parts |= svg.render_all(name, group)
    parts |= _front(folder, runs, head) | _tables(study, runs, head) | _provenance(folder, runs, head)
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


def _front(folder: StudyFolder, runs: list[Run], head: key_findings.Headline) -> Parts:
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
        "alarms": key_findings.gather_alarms(folder, runs),
        "compared": key_findings.describe_compared(runs, head),
        "answers": key_findings.summarise(study, runs, head),
        "models": accuracy.models(runs, head),
    }


def _list_files(folder: Path) -> str:
    """Return the files of the page's numbers, for a study or for one run."""
    of_study = (folder / layout.STUDY_RESULTS).is_file()
    names = (layout.STUDY_RESULTS,) if of_study else (layout.METRICS_FILE, layout.TRAINING_FILE)
    present = [name for name in (*names, layout.DATA_CHECK_FILE) if (folder / name).is_file()]
    return f"{', '.join(present)} and the tables in {'runs/' if of_study else 'this folder'}"


def _tables(study: StudyDocument, runs: list[Run], head: key_findings.Headline) -> Parts:
    under = "lowest accuracy under these attacks in whole percent, then by "
    epsilons = charts.radii(runs)
    return {
        "leaderboard": accuracy.leaderboard(runs, head),
        "over_seeds": accuracy.over_seeds(study),
        "order_note": f"Ordered by {under if head.strongest else ''}clean accuracy.",
        "uneven_axis": bool(epsilons) and charts.is_wide(epsilons),
        "sweeps": accuracy.sweeps([run for run in runs if run.attacks]),
        "matrices": [matrix for run in runs for matrix in accuracy.matrices(run, head)],
        "per_class": [accuracy.per_class(run, head.classes) for run in runs if run.clean.per_class],
        "proved": robustness.proved(runs),
        "proof_scope": robustness.SCOPE,
        "by_intervals": robustness.by_intervals(runs),
        "corrupted": robustness.corrupted(runs),
        "heats": robustness.heats(runs),
        "masking": robustness.masking(runs),
        "calibration": robustness.calibration(runs, head),
        "planted": robustness.planted(runs),
        "other_data": robustness.other_data(runs),
        "other_data_by_group": robustness.other_data_by_group(runs),
        "explanations": accuracy.explanations(runs),
        "explanations_perturbed": accuracy.explanations(runs, perturbed=True),
        "maps_show": saliency.shown(runs),
        "all_measures": saliency.measures(runs),
        "over_baselines": saliency.over_baselines(runs),
        "by_lesion": saliency.by_lesion(runs),
        "least_lesion_effects": saliency.least_lesion_effects(runs),
        "lesion_effects": saliency.lesion_effects(runs),
        "lesions_sampled": saliency.lesions_sampled(runs),
        "lesion_effects_by_size": saliency.lesion_effects_by_size(runs),
        "stability": saliency.stability(runs),
        "changes": saliency.changes(runs),
        "faithfulness": saliency.faithfulness(runs),
        "verdicts": saliency.verdicts(study),
        "compared_methods": list(charts.saliency_forests(study.comparisons)),
        "gallery": pictures.build_gallery(runs),
        "maps_file": layout.EXAMPLES_FILE,
        "colour_bar": pictures.colour_bar(),
        "comparisons": accuracy.comparisons(study),
        "shortcuts": accuracy.shortcuts(runs),
    }


def _provenance(folder: StudyFolder, runs: list[Run], head: key_findings.Headline) -> Parts:
    import yaml

    study = folder.study
    return {
        "check": folder.check,
        "check_findings": provenance.data_check_table(folder.check),
        "check_probes": provenance.probes(folder.check),
        "methods": methods_text.write_methods(study, runs),
        "counts": provenance.counts(study, head.classes),
        "facts": _list_facts(study, runs),
        "training": provenance.training(runs),
        "refit": any(run.metrics.training.refit for run in runs),
        "selection": provenance.selection(study),
        "recipe": yaml.safe_dump(study.recipe, sort_keys=False, allow_unicode=True) if study.recipe else "",
    }


def _list_facts(study: StudyDocument, runs: list[Run]) -> dict[str, str]:
    """Return machine, time, commit, other hardware, seeds, data fingerprint and versions, as far as recorded."""
    facts: dict[str, object] = study.hardware.model_dump(exclude_unset=True)
    facts |= {"Time in all": formatting.seconds(study.seconds), "TrustCXR": study.trustcxr}
    if study.source:
        changed = ", with local changes" if study.source.get("changed") else ""
        facts["Source"] = f"commit {study.source.get('commit')}{changed}"
    facts |= {f"Runs were trained {name}": text for name, text in methods_text.trained_elsewhere(study, runs).items()}
    if seeds := sorted({run.metrics.seed for run in runs if run.metrics.seed is not None}):
        facts["Seeds"] = ", ".join(map(str, seeds))
    if study.data.fingerprint:
        facts["Images, fingerprint"] = study.data.fingerprint
    facts |= {name: version for name, version in study.versions.items() if name.lower() != "trustcxr"}
    return {
        formatting.capital(name.replace("_", " ")): formatting.DASH if value in (None, "") else str(value)
        for name, value in facts.items()
    }
