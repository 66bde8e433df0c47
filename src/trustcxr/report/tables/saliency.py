"""Tables of where the networks look: every measure beside what it must beat, by lesion, stability, faithfulness."""

from collections.abc import Iterator
from dataclasses import replace

from trustcxr.registry import AGAINST_MASKS, CONTROL, HIT_RATE, ONE_CELL, REFERENCES, USUAL_ATTACKS, format_control
from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.ranking import main_method
from trustcxr.report.tables.table import Cell, Table, gained, plain, run_cells, whole
from trustcxr.storage.schemas import Change, Figure, Lead, Measured, SaliencyDocument, StudyDocument

_NOTES = {"above": "good", "below": "bad"}
_BY_CAUSE = "ranked_by_cause"
_MAIN = ("infection_energy", "infection_energy_given_lung", "pointing_hit_rate", "infection_auroc")


def documents(runs: list[Run], *, control: bool = True) -> Iterator[tuple[Run, str, SaliencyDocument]]:
    """Each run's saliency methods; the random map, which is the same for every run, once at the end."""
    random: tuple[Run, str, SaliencyDocument] | None = None
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
    first_cells = [Cell("any", note="quiet"), Cell(formatting.DASH)] if method == CONTROL else run_cells(run)
    return [*first_cells, Cell(formatting.method(method))]


def measures(runs: list[Run]) -> Table:
    """A row for each run, method and measure: the value, beside maps that look at no model, and its lead."""
    beside_it = [formatting.capital(name) for name in REFERENCES.values()]
    header = ["Model", "Defence", "Method", "Measure", "Value", *beside_it]
    header += ["Over the closest", "Over random weights", "Answered right", "n"]
    rows = []
    for run, method, document in documents(runs):
        for name in AGAINST_MASKS:
            figure = document.figure(name)
            if figure.value is None:
                if name == HIT_RATE and document.withheld:
                    rows.append(_withheld(run, method, document, len(header)))
                continue
            threshold = document.threshold if name == "infection_iou_tuned" else None
            tuned = "" if threshold is None else f"threshold {formatting.decimal(threshold, 2)}, tuned on validation"
            right, of = document.correct.figure(name).value, f"n = {formatting.count(document.correct.n)}"
            rows.append(
                [
                    *names(run, method),
                    Cell(formatting.measure(name), tuned),
                    _void(figure) if name in document.void else _noted(figure),
                    *[plain(figure.beside(reference)) for reference in REFERENCES],
                    _led(document.beyond, name),
                    _led(document.random_weights.leads if document.random_weights else [], name, named=False),
                    Cell(formatting.decimal(right), of, value=right),
                    whole(document.n),
                ]
            )
    return Table("Every measure of the explanations", header, rows, heads=4)


def _noted(figure: Figure) -> Cell:
    """Good where the whole interval lies above chance, bad where below."""
    return replace(plain(figure), note=_NOTES.get(figure.against_chance, ""))


def _void(figure: Figure) -> Cell:
    """A figure that random weights have too."""
    return replace(plain(figure), beside="void: survives randomising the network", note="bad")


def _withheld(run: Run, method: str, document: SaliencyDocument, columns: int) -> list[Cell]:
    """A dash in the place of a hit rate, or of all figures of a map of one cell, with its reason."""
    measure = "every measure" if document.cells == ONE_CELL else formatting.measure(HIT_RATE)
    row = [*names(run, method), Cell(measure), Cell(formatting.DASH, document.withheld, note="quiet")]
    return [*row, *[Cell(formatting.DASH) for _ in range(columns - len(row) - 1)], whole(document.n)]


def _led(leads: list[Lead], name: str, *, named: bool = True) -> Cell:
    """What the map has over a control by a measure; good where its interval is above 0, bad where below."""
    row = next((row for row in leads if row.measure == name), Lead())
    ends = row.difference.interval
    if row.difference.value is None or ends is None:
        return Cell(formatting.DASH)
    note = "good" if ends[0] > 0 else "bad" if ends[1] < 0 else ""
    return gained(row.difference, format_control(row.control) if named else "", note)


def shown(runs: list[Run]) -> Table:
    """What each map may be said to show: its cells, the hit rate that these allow, what random weights leave of it."""
    header = ["Model", "Defence", "Method", "Cells", "Hit rate that they allow", "SSIM with random weights", "It shows"]
    rows = []
    for run, method, document in documents(runs, control=False):
        if not (document.verdict or document.withheld or document.cells):
            continue
        ceiling, similarity = document.figure("pointing_ceiling"), document.figure("random_network_ssim")
        chance = "" if ceiling.chance is None else f"chance {formatting.decimal(ceiling.chance)}"
        note = "" if document.shows is None else "good" if document.shows and not document.survives else "bad"
        # A verdict that names every measure is long: what voids it stands first.
        says = document.survives or document.verdict or formatting.DASH
        rows.append(
            [
                *names(run, method),
                Cell(document.cells or "every pixel"),
                Cell(formatting.decimal(ceiling.value), formatting.range_text(ceiling.interval), chance, ceiling.value),
                plain(similarity),
                Cell(formatting.capital(says), document.withheld, note=note),
            ]
        )
    return Table("What each map may be said to show", header, rows, heads=3)


def over_controls(runs: list[Run]) -> Table:
    """What each map has over every control on the same images: a row for each run, method and measure."""
    measured = [(run, method, part) for run, method, part in documents(runs) if part.over_controls]
    controls = list(dict.fromkeys(lead.control for _, _, part in measured for lead in part.over_controls))
    rows = []
    for run, method, part in measured:
        for measure in dict.fromkeys(lead.measure for lead in part.over_controls):
            if part.figure(measure).value is None:
                continue
            leads = {lead.control: [lead] for lead in part.over_controls if lead.measure == measure}
            cells = [_led(leads.get(control, []), measure, named=False) for control in controls]
            rows.append([*names(run, method), Cell(formatting.measure(measure)), *cells, whole(part.n)])
    header = [
        "Model",
        "Defence",
        "Method",
        "Measure",
        *[formatting.capital(format_control(name)) for name in controls],
        "n",
    ]
    return Table("What each map has over every control", header, rows, heads=4)


def by_lesion(runs: list[Run]) -> Table:
    """The main measures by how much of the lungs the lesion covers, each beside chance."""
    header = [
        "Model",
        "Defence",
        "Method",
        "Lesion",
        *[formatting.capital(formatting.measure(name)) for name in _MAIN],
        "n",
    ]
    rows = []
    for run, method, document in documents(runs):
        for stratum in document.by_lesion:
            if not stratum.n:
                continue
            ends = [formatting.percent(end, 0) for end in (stratum.start, stratum.end)]
            figures = [stratum.figure(name) for name in _MAIN]
            cells = [replace(_noted(f), beside=f"chance {formatting.decimal(f.chance)}") for f in figures]
            about = Cell(stratum.stratum, f"{ends[0]} to {ends[1]} of the lungs")
            rows.append([*names(run, method), about, *cells, whole(stratum.n)])
    return Table("Explanations by size of the lesion", header, rows, heads=4)


def stability(runs: list[Run]) -> Table:
    """How like the clean map it stays: under attack, over corruptions, over artefacts, and what moves onto these.

    Where maps were not all measured under the same changes, under which stands with each.
    """
    header = ["Model", "Defence", "Method", *map(formatting.attack, USUAL_ATTACKS)]
    header += ["Corruptions", "Artefacts", "Moves onto artefacts"]
    rows, under = [], []
    for run, method, document in documents(runs):
        entries = {entry.condition: entry for entry in document.stability}
        if not entries:
            continue
        under.append(_strengths(document))
        figures = [entries.get(name, Change()).figure("stability_ssim") for name in USUAL_ATTACKS]
        figures += [document.figure(name) for name in ("corruption_ssim", "artefact_ssim")]
        gain = document.figure("artefact_gain")
        area = "" if gain.value is None else f"their area {formatting.decimal(_area(document))}"
        rows.append([*names(run, method), *map(plain, figures), gained(gain, area)])
    if len(set(under)) > 1:
        rows = [[*row[:2], replace(row[2], beside=how), *row[3:]] for row, how in zip(rows, under, strict=True)]
    return Table("Stability of the explanations", header, rows, heads=3)


def _strengths(document: SaliencyDocument) -> str:
    """Under which changes a map's stability was measured: epsilon 0.02; 15 corruptions at severity 3."""
    radii = sorted({entry.epsilon for entry in document.stability if entry.epsilon is not None and not entry.severity})
    texts = [f"epsilon {formatting.epsilon(radius)}" for radius in radii]
    for severity in sorted({entry.severity for entry in document.stability if entry.severity}):
        changed = [formatting.corruption(e.condition) for e in document.stability if e.severity == severity]
        some = formatting.join_words(changed) if len(changed) < 4 else f"{len(changed)} corruptions"
        texts.append(f"{some} at severity {severity}")
    return "; ".join(texts)


def _area(part: Measured) -> float | None:
    """The share of the picture that the inserted artefacts cover, with their energy or alone."""
    chance = part.figure("artefact_energy").chance
    return part.figure("artefact_energy_chance").value if chance is None else chance


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
        document = methods.get(main_method(methods), SaliencyDocument())
        for entry in document.stability:
            strength = (
                f"severity {entry.severity}" if entry.severity else f"epsilon {formatting.epsilon(entry.epsilon)}"
            )
            figures = [entry.figure(f"stability_{name}") for name in ("ssim", "rank_correlation", "top_tenth")]
            gain = entry.figure("artefact_gain")
            moved = Cell(formatting.signed(gain.value), formatting.range_text(gain.interval), value=gain.value)
            about = Cell(formatting.measure(formatting.attack(entry.condition)), strength)
            rows.append([*run_cells(run), about, *map(plain, figures), moved, plain(_area(entry)), whole(entry.n)])
    return Table("Stability under each change", header, rows, heads=3)


def faithfulness(runs: list[Run]) -> Table:
    """Insertion, deletion, ROAD and rank by cause beside a map that knows less; what randomisation leaves."""
    header = ["Model", "Defence", "Method", "Insertion", "Deletion (blurred)", "ROAD", "Ranks by cause"]
    header += ["Left of the map after", "n"]
    rows = []
    for run, method, document in documents(runs, control=False):
        figures = document.faithfulness
        if figures is None:
            continue
        control = run.saliency_methods().get(CONTROL)
        random = (control.faithfulness if control else None) or Measured()
        cells = []
        for name in ("insertion", "deletion", "road"):
            second_line = f"random {formatting.decimal(random.figure(name).value)}"
            cells.append(replace(plain(figures.figure(name)), beside=second_line))
        cause = figures.figure(_BY_CAUSE)
        over = _led(document.over_controls, _BY_CAUSE, named=False)
        second_line = f"brightness {formatting.decimal(cause.brightness)}"
        if over.value is not None:
            second_line += f"; over it {over.text} ({over.small})"
        cells.append(replace(plain(cause), beside=second_line, note=over.note))
        rows.append([*names(run, method), *cells, _randomised(document), whole(figures.n)])
    return Table("Faithfulness and sanity", header, rows, heads=3)


def _randomised(document: SaliencyDocument) -> Cell:
    """SSIM with the trained model's map once the last part is random, and once all of them are."""
    if not document.sanity:
        return Cell(formatting.DASH)
    first, last = document.sanity[0], document.sanity[-1]
    return Cell(
        formatting.decimal(last.figure("ssim").value),
        f"all random, rank correlation {formatting.decimal(last.figure('rank_correlation').value)}",
        f"{formatting.part(first.part)} alone random: {formatting.decimal(first.figure('ssim').value)}",
        last.figure("ssim").value,
    )


def verdicts(study: StudyDocument) -> list[str]:
    """The verdict of each saliency comparison in a sentence, with the run that it is about."""
    lines = []
    for row in study.comparisons:
        if row.method and row.verdict:
            where = formatting.variant(row.background, row.label)
            lines.append(f"{row.model} · {row.defence}{', ' if where else ''}{where}: {row.verdict}")
    return lines
