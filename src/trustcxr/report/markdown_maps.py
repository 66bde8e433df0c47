"""What a study's Markdown page says of maps: against the masks, ranked by cause, and what removed lesions do."""

from collections.abc import Iterator, Mapping, Sequence

from trustcxr.catalogue import ACTIVATION, AGAINST_MASKS, NULL_MAPS, ONE_CELL, RANDOMISED, REFERENCES, control_said
from trustcxr.report import words
from trustcxr.report.markdown_cells import cell_of, decimal, table
from trustcxr.report.study_folder import Run
from trustcxr.report.tables import lesions
from trustcxr.report.tables.cells import Table
from trustcxr.results.documents import BeyondControl, Figure, Measured, SaliencyDocument, Share

Beyond = Mapping[str, Sequence[BeyondControl]]  # by run
MEASURES = (*AGAINST_MASKS, NULL_MAPS)
BY_CAUSE = "ranked_by_cause"
_NO_MAP = "no map (one cell)"
_RANKED = (
    " Ranks regions by cause, of a sample: the rank correlation, over parts of the lungs, of the map with what "
    "removing each does to the answer; it is about the network and not about the disease."
)
_GAINED = ("infection_energy", "infection_energy_given_lung", "pointing_hit_rate", "infection_ap", "lung_energy")


def localisation(runs: Sequence[Run]) -> Iterator[str]:
    """For each saliency method one line a run: the measures against the masks, under them chance and the controls."""
    methods = list(dict.fromkeys(method for run in runs for method in run.saliency_methods()))
    if not methods:
        return
    parts = [part for run in runs for part in run.saliency_methods().values()]
    told = _RANKED if any(_of(part, BY_CAUSE).value is not None for part in parts) else ""
    yield from ("## Saliency against the radiologists' masks", "")
    yield (
        "Images with an infection mask, the class of the label explained; means with 95 % intervals over patients or "
        "groups of images. Below each method what maps have that look at no model: chance of an even map, a Gaussian "
        "in the middle, the mask of the lungs as if it were the map; then, where measured, what each network's layer "
        "shows without the answer, and what it has with random weights. Of energy given lung, the lungs' is the whole."
        + told
    )
    for method in methods:
        yield from ("", f"### {words.method(method)} (`{method}`)", "", *_of_method(runs, method))
    yield ""


def _of_method(runs: Sequence[Run], method: str) -> list[str]:
    parts = {run.name: run.saliency_methods()[method] for run in runs if method in run.saliency_methods()}
    asked = (*MEASURES, BY_CAUSE)
    names = [name for name in asked if any(_of(part, name).value is not None for part in parts.values())]
    lines = [[run, *(_figure(part, name) for name in names), words.count(part.n)] for run, part in parts.items()]
    first = next((part for part in parts.values() if part.cells != ONE_CELL), next(iter(parts.values())))
    for reference, said in REFERENCES.items():
        if reference in (ACTIVATION, RANDOMISED):
            continue
        beside = [_of(first, name).beside(reference) for name in names]
        if any(value is not None for value in beside):
            lines.append([f"*{said}*", *(decimal(Share(value=value)) for value in beside), ""])
    for run, part in parts.items():
        for reference, n in ((ACTIVATION, part.n), (RANDOMISED, part.random_weights and part.random_weights.n)):
            beside = [_of(part, name).beside(reference) for name in names]
            if n and any(value is not None for value in beside):
                shares = (decimal(Share(value=value)) for value in beside)
                lines.append([f"*{run}, {REFERENCES[reference]}*", *shares, words.count(n)])
    without = list(_without_map(method, [run for run, part in parts.items() if part.cells == ONE_CELL]))
    told = [f"- {run}: {'; '.join(found)}" for run, part in parts.items() if (found := _told(part))]
    over = _over_controls(parts)
    under = [line for block in (without, told, over) if block for line in ("", *block)]
    return [*table(["run", *map(words.measure, names), "n"], lines), *under]


def _over_controls(parts: Mapping[str, SaliencyDocument]) -> list[str]:
    """What each run's map has over every control on the same images; nothing of documents that do not say it."""
    leads = {
        (run, lead.measure, lead.control): lead.difference
        for run, part in parts.items()
        for lead in part.over_controls
        if _of(part, lead.measure).value is not None
    }
    controls = list(dict.fromkeys(control for _, _, control in leads))
    lines = [
        [run, words.measure(name), *(decimal(leads.get((run, name, one), Share()), signed=True) for one in controls)]
        for run, name in dict.fromkeys((run, name) for run, name, _ in leads)
    ]
    header = ["run", "measure", *map(control_said, controls)]
    return ["Less every control, image by image:", "", *table(header, lines)] if lines else []


def _figure(part: SaliencyDocument, name: str) -> str:
    """A figure of a map; what is measured of one that cannot differ from place to place is none."""
    if part.cells == ONE_CELL and name in AGAINST_MASKS:
        return _NO_MAP
    shown = decimal(_of(part, name))
    sampled = part.faithfulness.n if part.faithfulness and name == BY_CAUSE else None
    return f"{shown}, n {words.count(sampled)}" if shown and sampled else shown


def _of(part: SaliencyDocument, name: str) -> Figure:
    """A figure against the masks, or of what removing parts of the film does."""
    return (part.faithfulness or Measured()).figure(name) if name == BY_CAUSE else part.figure(name)


def _without_map(method: str, runs: Sequence[str]) -> Iterator[str]:
    if runs:
        yield (
            f"No map: {', '.join(runs)}. What {words.method(method)} reads there has one cell, so that the map is the "
            "same everywhere, a null map, and no figure says where the network looks."
        )


def _told(part: SaliencyDocument) -> list[str]:
    """What a map may be said to show, and why it has no hit rate."""
    cells = [f"{part.cells} cells"] if part.cells else []
    return [*cells, *(text for text in (part.withheld, part.verdict, part.survives) if text)] if part.verdict else []


def removed_lesions(runs: Sequence[Run]) -> Iterator[str]:
    """What removing the lesion does to the answer, beside its controls, and by its size; nothing without masks."""
    found, sizes = lesions.effects(list(runs)), lesions.by_size(list(runs))
    if not found.rows:
        return
    yield from ("## Is the lesion the reason?", "")
    yield (
        "The probability of the film's class: as it is; with the part of the lesion that has a congruent counterpart "
        "in healthy lung filled in; with that counterpart filled in alike; with the whole lesion filled in. The lesion "
        "effect is what the lesion's absence takes from it beyond what the same edit elsewhere takes: near 0, the "
        "answer does not hang on the lesion. Beside the background it is no proof: whoever reads the texture of lungs "
        "has an effect there too. Put into a healthy film: the probability of the donor's class for that film as it "
        "is, with the lesion ('lesion gone') and with as much of another healthy film's lung ('control gone'); the "
        "effect is what the lesion adds beyond the patch. Inpainted, under attack and put in are of a drawn sample. "
        "Left out: lesions of which less than a tenth has a counterpart. 95 % intervals over patients or groups of "
        "images."
    )
    yield from ("", *_as_markdown(found), "")
    if sizes.rows:
        yield from ("By how much of the lungs the lesion covers (healthy grey, against healthy lung):", "")
        yield from (*_as_markdown(sizes), "")


def _as_markdown(found: Table) -> list[str]:
    return table(found.header, [[cell_of(cell) for cell in line] for line in found.rows])


def what_is_added(runs: Sequence[Run], beyond: Beyond) -> Iterator[str]:
    """What each CAM shows beyond the activation of its own layer, image by image; nothing where that is no row."""
    lines = []
    for run in runs:
        found = beyond.get(run.name, ())
        for method in dict.fromkeys(row.method for row in found):
            by_name = {row.measure: row.difference for row in found if row.method == method}
            gained = (decimal(by_name.get(name, Share()), signed=True) for name in _GAINED)
            lines.append([run.name, words.method(method), *gained])
    if lines:
        yield from ("## Beyond the film's own brightness", "")
        yield (
            "A CAM multiplies the gradient by what its layer lets through, and that alone, the control `activation` of "
            "the same layer, may lie on opacities, being bright. This is the map less its control on the same images, "
            "with a 95 % interval over patients or groups of images: what the network adds. Where the interval reaches "
            "0, nothing is shown."
        )
        yield from ("", *table(["run", "method", *map(words.measure, _GAINED)], lines), "")
