"""Tables of where the networks look: every measure beside what it must beat, by lesion, stability, faithfulness."""

from collections.abc import Iterator
from typing import Any

from trustcxr.catalogue import AGAINST_MASKS, CONTROL, REFERENCES
from trustcxr.report import words
from trustcxr.report.study_folder import Run
from trustcxr.report.summary import chance_verdict, main_method
from trustcxr.report.tables.cells import Cell, Table, plain, whole

_MAIN = ("infection_energy", "infection_energy_given_lung", "pointing_hit_rate", "infection_auroc")


def documents(runs: list[Run], *, control: bool = True) -> Iterator[tuple[Run, str, dict[str, Any]]]:
    """Each run's saliency methods; the random map, which is the same for every run, once at the end."""
    random: tuple[Run, str, dict[str, Any]] | None = None
    for run in runs:
        for method, document in run.saliency_methods().items():
            if method == CONTROL:
                random = random or (run, method, document)
            else:
                yield run, method, document
    if random and control:
        yield random


def names(run: Run, method: str) -> list[Cell]:
    """Model, defence and method; the random map is nobody's."""
    if method == CONTROL:
        return [Cell("any", note="quiet"), Cell(words.DASH), Cell(words.method(method))]
    return [Cell(run.model), Cell(run.defence, run.qualifier), Cell(words.method(method))]


def measures(runs: list[Run]) -> Table:
    """A row for each run, method and measure: the value, beside maps that look at no model, and its lead."""
    beside_it = [_capital(name) for name in REFERENCES.values()]
    header = ["Model", "Defence", "Method", "Measure", "Value", *beside_it, "Over the closest", "Answered right", "n"]
    rows = []
    for run, method, document in documents(runs):
        for name in AGAINST_MASKS:
            if words.finite(document.get(name)) is None:
                continue
            value = plain(document.get(name), 3, document.get(f"{name}_ci"))
            note = {"above": "good", "below": "bad"}.get(chance_verdict(document, name), "")
            threshold = words.finite(document.get("threshold")) if name == "infection_iou_tuned" else None
            tuned = "" if threshold is None else f"threshold {words.decimal(threshold, 2)}, tuned on validation"
            right = document.get("correct") if isinstance(document.get("correct"), dict) else {}
            of = f"n = {words.count(words.get(right, 'n'))}"
            rows.append(
                [
                    *names(run, method),
                    Cell(words.measure(name), tuned),
                    Cell(value.text, value.small, "", value.value, note),
                    *[plain(document.get(f"{name}_{beside}")) for beside in REFERENCES],
                    _beyond(document, name),
                    Cell(words.decimal(words.get(right, name)), of, value=words.finite(words.get(right, name))),
                    whole(document.get("n")),
                ]
            )
    return Table(header, rows, heads=4)


def _beyond(document: dict[str, Any], name: str) -> Cell:
    """What the map has over the reference that comes closest; good where its interval is above 0, bad where below."""
    row = next((r for r in words.records(document.get("beyond")) if r.get("measure") == name), {})
    value, ends = words.finite(row.get("difference")), row.get("difference_ci")
    if value is None or not isinstance(ends, list):
        return Cell(words.DASH)
    note = "good" if ends[0] > 0 else "bad" if ends[1] < 0 else ""
    control = REFERENCES.get(str(row.get("control")), "")
    return Cell(words.signed(value), words.between(ends, reveal=True), control, value, note)


def by_lesion(runs: list[Run]) -> Table:
    """The main measures by how much of the lungs the lesion covers, each beside chance."""
    header = ["Model", "Defence", "Method", "Lesion", *[_capital(words.measure(name)) for name in _MAIN], "n"]
    rows = []
    for run, method, document in documents(runs):
        for stratum in words.records(document.get("by_lesion")):
            if not words.finite(stratum.get("n")):
                continue
            ends = [words.percent(stratum.get(end), 0) for end in ("from", "to")]
            cells = []
            for name in _MAIN:
                value = plain(stratum.get(name), 3, stratum.get(f"{name}_ci"))
                note = {"above": "good", "below": "bad"}.get(chance_verdict(stratum, name), "")
                chance = f"chance {words.decimal(stratum.get(f'{name}_chance'))}"
                cells.append(Cell(value.text, value.small, chance, value.value, note))
            about = Cell(str(stratum.get("stratum")), f"{ends[0]} to {ends[1]} of the lungs")
            rows.append([*names(run, method), about, *cells, whole(stratum.get("n"))])
    return Table(header, rows, heads=4)


def stability(runs: list[Run]) -> Table:
    """How like the clean map it stays: under attack, over corruptions, over artefacts, and what moves onto these."""
    header = ["Model", "Defence", "Method", "FGSM", "PGD", "Corruptions", "Artefacts", "Moves onto artefacts"]
    rows = []
    for run, method, document in documents(runs):
        entries = {str(e.get("condition")): e for e in words.records(document.get("stability"))}
        if not entries:
            continue
        attacks = [entries.get(name, {}) for name in ("fgsm", "pgd")]
        cells = [plain(e.get("stability_ssim"), 3, e.get("stability_ssim_ci")) for e in attacks]
        cells += [
            plain(document.get(name), 3, document.get(f"{name}_ci")) for name in ("corruption_ssim", "artefact_ssim")
        ]
        area = f"their area {words.decimal(document.get('artefact_energy_chance'))}"
        gain, inside = document.get("artefact_gain"), words.between(document.get("artefact_gain_ci"), reveal=True)
        known = words.finite(gain) is not None
        cells.append(Cell(words.signed(gain), inside, area if known else "", words.finite(gain)))
        rows.append([*names(run, method), *cells])
    return Table(header, rows, heads=3)


def changes(runs: list[Run]) -> Table:
    """Stability under each change by itself, of each run's main method."""
    header = [
        "Model",
        "Defence",
        "Change",
        "SSIM",
        "Rank correlation",
        "Top tenth kept",
        "Moves onto it",
        "Its area",
        "n",
    ]
    rows = []
    for run in runs:
        methods = run.saliency_methods()
        document = methods.get(main_method(methods), {})
        for entry in words.records(document.get("stability")):
            severity = words.finite(entry.get("severity"))
            strength = f"severity {severity:.0f}" if severity else f"epsilon {words.epsilon(entry.get('epsilon'))}"
            cells = [
                plain(entry.get(f"stability_{name}"), 3, entry.get(f"stability_{name}_ci"))
                for name in ("ssim", "rank_correlation", "top_tenth")
            ]
            gain = entry.get("artefact_gain")
            moved = Cell(words.signed(gain), words.between(entry.get("artefact_gain_ci")), value=words.finite(gain))
            about = Cell(words.measure(words.attack(entry.get("condition"))), strength)
            area = plain(entry.get("artefact_energy_chance"))
            rows.append(
                [Cell(run.model), Cell(run.defence, run.qualifier), about, *cells, moved, area, whole(entry.get("n"))]
            )
    return Table(header, rows, heads=3)


def faithfulness(runs: list[Run]) -> Table:
    """Insertion, deletion and ROAD beside those of a random map on the same model, and what randomisation leaves."""
    header = ["Model", "Defence", "Method", "Insertion", "Deletion (blurred)", "ROAD", "Left of the map after", "n"]
    rows = []
    for run, method, document in documents(runs, control=False):
        found = document.get("faithfulness")
        if not isinstance(found, dict):
            continue
        random = words.get(run.metrics, "saliency", CONTROL, "faithfulness") or {}
        cells = []
        for name in ("insertion", "deletion", "road"):
            value = plain(found.get(name), 3, found.get(f"{name}_ci"))
            cells.append(Cell(value.text, value.small, f"random {words.decimal(random.get(name))}", value.value))
        rows.append([*names(run, method), *cells, _randomised(document), whole(found.get("n"))])
    return Table(header, rows, heads=3)


def _randomised(document: dict[str, Any]) -> Cell:
    """SSIM with the trained model's map once the last part is random, and once all of them are."""
    stages = words.records(document.get("sanity"))
    if not stages:
        return Cell(words.DASH)
    first, last = stages[0], stages[-1]
    part = str(first.get("part")).removeprefix("net.")
    return Cell(
        words.decimal(last.get("ssim")),
        f"all random, rank correlation {words.decimal(last.get('rank_correlation'))}",
        f"{part} alone random: {words.decimal(first.get('ssim'))}",
        words.finite(last.get("ssim")),
    )


def verdicts(study: dict[str, Any]) -> list[str]:
    """The verdict of each saliency comparison in a sentence, with the run that it is about."""
    lines = []
    for row in words.records(study.get("comparisons")):
        if row.get("method") and row.get("verdict"):
            background = str(row.get("background") or "full")
            where = "" if background == "full" else f", background {background}"
            lines.append(f"{row.get('model')} · {row.get('defence')}{where}: {row['verdict']}")
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
