"""Build the tables of saliency: every measure with its baselines, lesion size, stability, faithfulness."""

from collections.abc import Iterator
from dataclasses import replace

from trustcxr.registry import AGAINST_MASKS, HIT_RATE, ONE_CELL, RANDOM_MAP, REFERENCES, USUAL_ATTACKS, format_baseline
from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.ranking import main_method
from trustcxr.report.tables.accuracy import VOID
from trustcxr.report.tables.table import Cell, Table, gained, method_cells, plain, run_cells, whole
from trustcxr.storage.schemas import Change, Figure, Lead, Measured, SaliencyDocument, StudyDocument

_NOTES = {"above": "good", "below": "bad"}
_BY_CAUSE = "ranked_by_cause"
_MAIN = ("infection_energy", "infection_energy_given_lung", "pointing_hit_rate", "infection_auroc")


def documents(runs: list[Run], *, baseline_maps: bool = True) -> Iterator[tuple[Run, str, SaliencyDocument]]:
    """Yield each run's saliency methods; the random map, which is the same for every run, once at the end."""
    random: tuple[Run, str, SaliencyDocument] | None = None
    for run in runs:
        for method, document in run.metrics.saliency.items():
            if method == RANDOM_MAP:
                random = random or (run, method, document)
            else:
                yield run, method, document
    if random and baseline_maps:
        yield random


def measures(runs: list[Run]) -> Table:
    """Return a row per run, method and measure: the value, baseline maps, and the lead over them."""
    baselines = [formatting.capital(name) for name in REFERENCES.values()]
    header = ["Model", "Defence", "Method", "Measure", "Value", *baselines]
    header += ["Over the closest", "Over random weights", "Classified correctly", "n"]
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
            right, n = document.correct.figure(name).value, f"n = {formatting.count(document.correct.n)}"
            value = replace(plain(figure), second=VOID, note="bad") if name in document.void else _noted(figure)
            rows.append(
                [
                    *method_cells(run, method),
                    Cell(formatting.measure(name), tuned),
                    value,
                    *[plain(figure.baseline(reference)) for reference in REFERENCES],
                    _lead(document.beyond, name),
                    _lead(document.random_weights.leads if document.random_weights else [], name, named=False),
                    Cell(formatting.decimal(right), n, value=right),
                    whole(document.n),
                ]
            )
    return Table("Every measure of the explanations", header, rows, heads=4)


def _noted(figure: Figure) -> Cell:
    """Return a figure, good if the whole interval is above chance, bad if it is below."""
    return replace(plain(figure), note=_NOTES.get(figure.against_chance, ""))


def _withheld(run: Run, method: str, document: SaliencyDocument, columns: int) -> list[Cell]:
    """Return a dash instead of a hit rate, or of all figures of a map of one cell, with the reason."""
    measure = "every measure" if document.cells == ONE_CELL else formatting.measure(HIT_RATE)
    row = [*method_cells(run, method), Cell(measure), Cell(formatting.DASH, document.withheld, note="quiet")]
    return [*row, *[Cell(formatting.DASH) for _ in range(columns - len(row) - 1)], whole(document.n)]


def _lead(leads: list[Lead], name: str, *, named: bool = True) -> Cell:
    """Return the lead over a baseline by a measure; good if its interval is above 0, bad if below."""
    row = next((row for row in leads if row.measure == name), Lead())
    ends = row.difference.interval
    if row.difference.value is None or ends is None:
        return Cell(formatting.DASH)
    note = "good" if ends[0] > 0 else "bad" if ends[1] < 0 else ""
    return gained(row.difference, format_baseline(row.baseline) if named else "", note)


def shown(runs: list[Run]) -> Table:
    """Return what each map may show: cells, the largest hit rate, similarity with random weights, verdict."""
    header = ["Model", "Defence", "Method", "Cells", "Largest hit rate", "SSIM with random weights", "Verdict"]
    rows = []
    for run, method, document in documents(runs, baseline_maps=False):
        if not (document.verdict or document.withheld or document.cells):
            continue
        ceiling = document.figure("pointing_ceiling")
        chance = "" if ceiling.chance is None else f"chance {formatting.decimal(ceiling.chance)}"
        note = "" if document.shows is None else "good" if document.shows and not document.survives else "bad"
        text = formatting.capital(document.survives or document.verdict or formatting.DASH)
        rows.append(
            [
                *method_cells(run, method),
                Cell(document.cells or "every pixel"),
                replace(plain(ceiling), second=chance),
                plain(document.figure("random_network_ssim")),
                Cell(text, document.withheld, note=f"{note} prose".strip()),
            ]
        )
    return Table("Verdict on each map", header, rows, heads=3)


def over_baselines(runs: list[Run]) -> Table:
    """Return the lead over every baseline map on the same images, a row per run, method and measure."""
    measured = [(run, method, part) for run, method, part in documents(runs) if part.over_baselines]
    names = list(dict.fromkeys(lead.baseline for _, _, part in measured for lead in part.over_baselines))
    rows = []
    for run, method, part in measured:
        for measure in dict.fromkeys(lead.measure for lead in part.over_baselines):
            if part.figure(measure).value is None:
                continue
            leads = {lead.baseline: [lead] for lead in part.over_baselines if lead.measure == measure}
            cells = [_lead(leads.get(name, []), measure, named=False) for name in names]
            rows.append([*method_cells(run, method), Cell(formatting.measure(measure)), *cells, whole(part.n)])
    titles = [formatting.capital(format_baseline(name)) for name in names]
    return Table("Lead over every baseline map", ["Model", "Defence", "Method", "Measure", *titles, "n"], rows, heads=4)


def by_lesion(runs: list[Run]) -> Table:
    """Return the main measures by the share of the lungs that the lesion covers, with chance."""
    rows = []
    for run, method, document in documents(runs):
        for stratum in document.by_lesion:
            if stratum.n:
                ends = [formatting.percent(end, 0) for end in (stratum.start, stratum.end)]
                figures = [stratum.figure(name) for name in _MAIN]
                cells = [replace(_noted(f), second=f"chance {formatting.decimal(f.chance)}") for f in figures]
                size = Cell(stratum.stratum, f"{ends[0]} to {ends[1]} of the lungs")
                rows.append([*method_cells(run, method), size, *cells, whole(stratum.n)])
    titles = [formatting.capital(formatting.measure(name)) for name in _MAIN]
    header = ["Model", "Defence", "Method", "Lesion", *titles, "n"]
    return Table("Explanations by size of the lesion", header, rows, heads=4)


def stability(runs: list[Run]) -> Table:
    """Return similarity with the clean map under attack, corruptions and artefacts.

    The changes are named only if they differ between maps.
    """
    header = ["Model", "Defence", "Method", *map(formatting.attack, USUAL_ATTACKS)]
    header += ["Corruptions", "Artefacts", "Moves onto artefacts"]
    rows, under = [], []
    for run, method, document in documents(runs):
        entries = {entry.condition: entry for entry in document.stability}
        if not entries:
            continue
        under.append(_describe_changes(document))
        figures = [entries.get(name, Change()).figure("stability_ssim") for name in USUAL_ATTACKS]
        figures += [document.figure(name) for name in ("corruption_ssim", "artefact_ssim")]
        gain = document.figure("artefact_gain")
        area = "" if gain.value is None else f"their area {formatting.decimal(_area(document))}"
        rows.append([*method_cells(run, method), *map(plain, figures), gained(gain, area)])
    if len(set(under)) > 1:
        rows = [[*row[:2], replace(row[2], second=how), *row[3:]] for row, how in zip(rows, under, strict=True)]
    return Table("Stability of the explanations", header, rows, heads=3)


def _describe_changes(document: SaliencyDocument) -> str:
    """Return the changes of a map's stability: epsilon 0.02; 15 corruptions at severity 3."""
    radii = sorted({entry.epsilon for entry in document.stability if entry.epsilon is not None and not entry.severity})
    texts = [f"epsilon {formatting.epsilon(radius)}" for radius in radii]
    for severity in sorted({entry.severity for entry in document.stability if entry.severity}):
        changed = [formatting.corruption(e.condition) for e in document.stability if e.severity == severity]
        some = formatting.join_words(changed) if len(changed) < 4 else f"{len(changed)} corruptions"
        texts.append(f"{some} at severity {severity}")
    return "; ".join(texts)


def _area(part: Measured) -> float | None:
    """Return the share of the image that the inserted artefacts cover."""
    chance = part.figure("artefact_energy").chance
    return part.figure("artefact_energy_chance").value if chance is None else chance


def changes(runs: list[Run]) -> Table:
    """Return stability under each change, for each run's main method."""
    header = ["Model", "Defence", "Change", "SSIM", "Rank correlation", "Top tenth unchanged", "Moves onto it"]
    rows = []
    for run in runs:
        methods = run.metrics.saliency
        for entry in methods.get(main_method(methods), SaliencyDocument()).stability:
            radius = f"epsilon {formatting.epsilon(entry.epsilon)}"
            strength = f"severity {entry.severity}" if entry.severity else radius
            name = Cell(formatting.measure(formatting.attack(entry.condition)), strength)
            figures = [entry.figure(f"stability_{key}") for key in ("ssim", "rank_correlation", "top_tenth")]
            gain = entry.figure("artefact_gain")
            moved = replace(plain(gain), text=formatting.signed(gain.value))
            rows.append([*run_cells(run), name, *map(plain, figures), moved, plain(_area(entry)), whole(entry.n)])
    return Table("Stability under each change", [*header, "Its area", "n"], rows, heads=3)


def faithfulness(runs: list[Run]) -> Table:
    """Return insertion, deletion, ROAD and rank by cause with a random map, and similarity after randomising."""
    header = ["Model", "Defence", "Method", "Insertion", "Deletion (blurred)", "ROAD", "Ranks by cause"]
    header += ["After randomising", "n"]
    rows = []
    for run, method, document in documents(runs, baseline_maps=False):
        part = document.faithfulness
        if part is None:
            continue
        random_map = run.metrics.saliency.get(RANDOM_MAP)
        random = (random_map.faithfulness if random_map else None) or Measured()
        cells = []
        for name in ("insertion", "deletion", "road"):
            second = f"random {formatting.decimal(random.figure(name).value)}"
            cells.append(replace(plain(part.figure(name)), second=second))
        cause, over = part.figure(_BY_CAUSE), _lead(document.over_baselines, _BY_CAUSE, named=False)
        second = f"brightness {formatting.decimal(cause.brightness)}"
        if over.value is not None:
            second += f"; over it {over.text} ({over.small})"
        cells.append(replace(plain(cause), second=second, note=over.note))
        rows.append([*method_cells(run, method), *cells, _randomised(document), whole(part.n)])
    return Table("Faithfulness and sanity", header, rows, heads=3)


def _randomised(document: SaliencyDocument) -> Cell:
    """Return SSIM with the trained model's map once all parts are random, and once the last part is."""
    if not document.sanity:
        return Cell(formatting.DASH)
    first, last = document.sanity[0], document.sanity[-1].figure("ssim").value
    return Cell(
        formatting.decimal(last),
        f"all random, rank correlation {formatting.decimal(document.sanity[-1].figure('rank_correlation').value)}",
        f"{formatting.part(first.part)} alone random: {formatting.decimal(first.figure('ssim').value)}",
        last,
    )


def verdicts(study: StudyDocument) -> list[str]:
    """Return the verdict of each saliency comparison in a sentence, with its run."""
    return [
        f"{row.model} · {', '.join(filter(None, (row.defence, formatting.variant(row.background, row.label))))}: "
        f"{row.verdict}"
        for row in study.comparisons
        if row.method and row.verdict
    ]
