"""Build the tables of saliency maps, and of the lesion effect: the answer without the lesion, against controls."""

from trustcxr.registry import AGAINST_MASKS, HIT_RATE, ONE_CELL, RANDOM_MAP, REFERENCES, USUAL_ATTACKS, format_baseline
from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.tables.accuracy import VOID
from trustcxr.report.tables.table import Cell, Table, gained, method_cells, plain, run_cells, whole
from trustcxr.storage import schemas
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import Figure, Lead, LesionDocument, Measured, SaliencyDocument, Share

_BY_CAUSE = "ranked_by_cause"
_MAIN = ("infection_energy", "infection_energy_given_lung", "pointing_hit_rate", "infection_auroc")


def documents(runs: list[Run], *, baseline_maps: bool = True) -> list[tuple[Run, str, SaliencyDocument]]:
    """Return each run's saliency methods; the random map, which is the same for every run, once at the end."""
    every = [(run, method, part) for run in runs for method, part in run.metrics.saliency.items()]
    random = [row for row in every if row[1] == RANDOM_MAP]
    return [row for row in every if row[1] != RANDOM_MAP] + random[: int(baseline_maps)]


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
            value = plain(figure, second=VOID, note="bad") if name in document.void else _noted(figure)
            rows.append(
                [
                    *method_cells(run, method),
                    Cell(formatting.measure(name), tuned),
                    value,
                    *[plain(getattr(figure, reference)) for reference in REFERENCES],
                    _lead(document.beyond, name),
                    _lead(document.random_weights.leads if document.random_weights else [], name, named=False),
                    Cell(formatting.decimal(right), n, value=right),
                    whole(document.n),
                ]
            )
    return Table("Every measure of the explanations", header, rows, heads=4)


def _noted(figure: Figure, second: str = "") -> Cell:
    """Return a figure, good if the whole interval is above chance, bad if it is below."""
    return plain(figure, second=second, note={"above": "good", "below": "bad"}.get(figure.against_chance, ""))


def _withheld(run: Run, method: str, document: SaliencyDocument, columns: int) -> list[Cell]:
    """Return a dash instead of a hit rate, or of all figures of a map of one cell, with the reason."""
    measure = "every measure" if document.cells == ONE_CELL else formatting.measure(HIT_RATE)
    row = [*method_cells(run, method), Cell(measure), Cell(formatting.DASH, document.withheld, note="quiet")]
    return [*row, *[Cell(formatting.DASH) for _ in range(columns - len(row) - 1)], whole(document.n)]


def _lead(leads: list[Lead], name: str, *, named: bool = True) -> Cell:
    """Return the lead over a baseline by a measure; good if its interval is above 0, bad if below."""
    row = next((row for row in leads if row.measure == name), Lead())
    if row.difference.value is None or row.difference.interval is None:
        return Cell(formatting.DASH)
    return gained(row.difference, format_baseline(row.baseline) if named else "", _side(row.difference))


def _side(difference: Share) -> str:
    low, high = difference.interval or (0.0, 0.0)
    return "good" if low > 0 else "bad" if high < 0 else ""


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
                plain(ceiling, second=chance),
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
                cells = [_noted(f, f"chance {formatting.decimal(f.chance)}") for f in figures]
                size = Cell(stratum.stratum, f"{ends[0]} to {ends[1]} of the lungs")
                rows.append([*method_cells(run, method), size, *cells, whole(stratum.n)])
    titles = [formatting.capital(formatting.measure(name)) for name in _MAIN]
    header = ["Model", "Defence", "Method", "Lesion", *titles, "n"]
    return Table("Explanations by size of the lesion", header, rows, heads=4)


def stability(runs: list[Run]) -> Table:
    """Return similarity with the clean map under attack, corruptions and artefacts; named if they differ by map."""
    header = ["Model", "Defence", "Method", *map(formatting.attack, USUAL_ATTACKS)]
    header += ["Corruptions", "Artefacts", "Moves onto artefacts"]
    measured = [(run, method, part) for run, method, part in documents(runs) if part.stability]
    differ = len({_describe_changes(part) for *_, part in measured}) > 1
    rows = []
    for run, method, part in measured:
        entries = {entry.condition: entry for entry in part.stability}
        figures = [entries.get(name, Measured()).figure("stability_ssim") for name in USUAL_ATTACKS]
        figures += [part.figure(name) for name in ("corruption_ssim", "artefact_ssim")]
        gain = part.figure("artefact_gain")
        area = "" if gain.value is None else f"their area {formatting.decimal(_area(part))}"
        names = method_cells(run, method, second=_describe_changes(part) if differ else "")
        rows.append([*names, *map(plain, figures), gained(gain, area)])
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
        for entry in run.main_saliency.stability:
            radius = f"epsilon {formatting.epsilon(entry.epsilon)}"
            strength = f"severity {entry.severity}" if entry.severity else radius
            name = Cell(formatting.measure(formatting.attack(entry.condition)), strength)
            figures = [entry.figure(f"stability_{key}") for key in ("ssim", "rank_correlation", "top_tenth")]
            gain = entry.figure("artefact_gain")
            moved = Cell(formatting.signed(gain.value), formatting.range_text(gain.interval), value=gain.value)
            rows.append([*run_cells(run), name, *map(plain, figures), moved, plain(_area(entry)), whole(entry.n)])
    return Table("Stability under each change", [*header, "Its area", "n"], rows, heads=3)


def faithfulness(runs: list[Run]) -> Table:
    """Return insertion, deletion, ROAD and rank by cause with a random map, and similarity after randomising."""
    header = ["Model", "Defence", "Method", "Insertion", "Deletion (blurred)", "ROAD", "Ranks by cause"]
    header += ["After randomising", "n"]
    rows = []
    for run, method, document in documents(runs, baseline_maps=False):
        if (part := document.faithfulness) is None:
            continue
        random_map = run.metrics.saliency.get(RANDOM_MAP)
        random = (random_map.faithfulness if random_map else None) or Measured()
        cells = [
            plain(part.figure(name), second=f"random {formatting.decimal(random.figure(name).value)}")
            for name in ("insertion", "deletion", "road")
        ]
        cause, over = part.figure(_BY_CAUSE), _lead(document.over_baselines, _BY_CAUSE, named=False)
        second = f"brightness {formatting.decimal(cause.brightness)}"
        if over.value is not None:
            second += f"; over it {over.text} ({over.small})"
        cells += [plain(cause, second=second, note=over.note), _randomised(document)]
        rows.append([*method_cells(run, method), *cells, whole(part.n)])
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


def verdicts(study: schemas.StudyDocument) -> list[str]:
    """Return the verdict of each saliency comparison in a sentence, with its run."""
    return [
        f"{row.model} · {', '.join(filter(None, (row.defence, formatting.variant(row.background, row.label))))}: "
        f"{row.verdict}"
        for row in study.comparisons
        if row.method and row.verdict
    ]


def least_lesion_effects(runs: list[Run]) -> Table:
    """Return a row per run: the least lesion effect by any fill, and the fall of images without a control."""
    rows = []
    for run in runs:
        if (row := run.metrics.lesion_effect) is None:
            continue
        alone = next((r.without_control for r in run.metrics.lesions if r.fill == row.fill and r.without_control), None)
        cells = [gained(row.least, note=_side(row.least)), *_fill_cells(row), whole(row.images)]
        cells += [plain(alone.fall), whole(alone.images)] if alone else [Cell(formatting.DASH)] * 2
        rows.append([*run_cells(run), *cells])
    header = ["Model", "Defence", "Least lesion effect", "Filled with", "Control", "n"]
    header += ["Fall without a control", "n without a control"]
    return Table("Least lesion effect", header, rows, heads=2)


def lesion_effects(runs: list[Run]) -> Table:
    """Return a row per run, fill and control: probabilities, the lesion effect, and flipped answers."""
    rows = []
    for run, row in _lesions(runs):
        # A model that reads lung texture has an effect over a control in the background too.
        note = "" if row.control == "background" else _side(row.least)
        answers = map(plain, (row.before, row.without, row.control_answer, row.whole))
        effects = [gained(row.effect), gained(row.fall), gained(row.least, note=note)]
        control = f"control {formatting.percent(row.flipped_control, 0)}"
        flips = Cell(formatting.percent(row.flipped.value, 0), control, value=row.flipped.value)
        cells = [*answers, *effects, flips, whole(row.left_out), whole(row.images)]
        rows.append([*run_cells(run), *_fill_cells(row), *cells])
    header = ["Model", "Defence", "Filled with", "Control", "Original image", "Lesion removed", "Control removed"]
    header += ["Whole removed", "Lesion effect", "Fall", "Smaller of both", "Answers that flip", "Left out", "n"]
    return Table("Lesion effect", header, rows, heads=4)


def _lesions(runs: list[Run]) -> list[tuple[Run, LesionDocument]]:
    return [(run, row) for run in runs for row in run.metrics.lesions]


_FILLS = {
    "grey": "healthy grey",
    "mirror": "mirrored lung",
    "inpaint": "inpainted",
    "drawn": "healthy greys, drawn",
    "transplant": "transplanted into a healthy image",
}


def _fill_cells(row: LesionDocument) -> list[Cell]:
    attack = f"under {formatting.attack(row.condition)}, epsilon {formatting.epsilon(row.epsilon)}"
    return [
        Cell(_FILLS.get(row.fill, formatting.DASH), "" if row.condition == CLEAN else attack),
        Cell({"lung": "healthy lung"}.get(row.control, row.control) or formatting.DASH),
    ]


def lesions_sampled(runs: list[Run]) -> bool:
    """Return True if anything was measured on a drawn sample alone."""
    return any(row.condition != CLEAN or row.fill in ("inpaint", "transplant") for _, row in _lesions(runs))


def lesion_effects_by_size(runs: list[Run]) -> Table:
    """Return the lesion effect against healthy lung, filled with healthy grey, by the share of the lungs covered."""
    rows = []
    for run, row in _lesions(runs):
        grey = (row.fill, row.control, row.condition) == ("grey", "lung", CLEAN)
        for part in row.by_size if grey else []:
            size = Cell(f"{formatting.percent(part.above, 0)} to {formatting.percent(part.up_to, 0)}")
            effect = plain(Share(value=part.effect, ci=(part.low, part.high)))
            rows.append([*run_cells(run), size, effect, whole(part.images)])
    header = ["Model", "Defence", "Share of the lungs", "Lesion effect", "n"]
    return Table("Lesion effect by the size of the lesion", header, rows, heads=3)
