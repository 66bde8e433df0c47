"""Summarise the table of saliency.parquet as the part "saliency" of metrics.json, with a verdict on each method.

Maps beat their baseline maps and random weights, or say nothing of the network. A map that stays with random weights
(Adebayo et al. 2018) depends on the image or the method.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trustcxr import registry
from trustcxr.explain.baseline_scores import CEILING, DRAWS, SHARPENED, SIMILARITY, SPREAD
from trustcxr.explain.evaluate import BY_CAUSE, CASCADE
from trustcxr.registry import STABILITY_ATTACK
from trustcxr.statistics import Bootstrap, Floats, interval, share_interval
from trustcxr.storage import schemas
from trustcxr.storage.prediction_table import CLEAN

COVERED = 0.95  # share of the lungs from which an infection mask gives no position within them
_SHARES = (registry.NULL_MAPS, "pointing_hit_rate")
_NAMES = {"null_map": registry.NULL_MAPS}
_FAITHFUL = ("insertion", "deletion", "road", BY_CAUSE)
_STABLE = ("stability_ssim", "stability_rank_correlation", "stability_top_tenth")
_MOVED = ("artefact_energy", "artefact_gain")
SURVIVES = "survives_randomisation"  # a kind of alarm
SAME_MAP = 0.9  # mean SSIM with the maps of random weights from which it counts as the same map


class Summary:
    """Means and intervals over groups; the resamples of one set of images are drawn once."""

    def __init__(self, resamples: int) -> None:
        self.resamples = resamples
        self._drawn: dict[bytes, Bootstrap] = {}

    def means(self, rows: pd.DataFrame) -> dict[str, schemas.Figure]:
        """Return for each measure its mean, interval, and the means of its references on the same images."""
        figures = {}
        for measure, groups, values in _by_measure(rows, tuple(registry.REFERENCES)):
            name, bootstrap = _NAMES.get(measure, measure), self._over(groups)
            means = bootstrap.means(values["value"])
            counted = ~np.isnan(values.pop("value"))
            ends = share_interval(bootstrap, means, of=counted) if name in _SHARES else interval(means)
            columns = {name: _mean(column[counted]) for name, column in values.items()}
            numbers = {name: mean for name, mean in columns.items() if not np.isnan(mean)}
            figures[name] = schemas.Figure(value=means[0], ci=ends, **numbers)
        return figures

    def leads(self, rows: pd.DataFrame, baselines: Sequence[str]) -> list[schemas.Lead]:
        """Return the leads of the maps over each of these baseline maps, by measure, on the same images."""
        leads = []
        against_masks = rows[rows["measure"].isin((*registry.AGAINST_MASKS, BY_CAUSE))]
        for measure, groups, values in _by_measure(against_masks, baselines):
            bootstrap, scores = self._over(groups), values.pop("value")
            columns = {name: column for name, column in values.items() if not np.isnan(column).all()}
            spread = float(np.nanmax(columns.pop(SPREAD))) if SPREAD in columns else float("nan")
            for name, column in columns.items():
                over = bootstrap.means(scores - column)
                if np.isnan(over[0]):
                    continue
                ends = interval(over)
                if name == registry.RANDOMISED:
                    ends = widen_by_draws(float(over[0]), ends, spread)
                difference = schemas.Share(value=over[0], ci=ends)
                leads.append(schemas.Lead(measure=measure, baseline=name, difference=difference))
        return leads

    def _over(self, names: NDArray[np.str_]) -> Bootstrap:
        key = names.tobytes()
        if key not in self._drawn:
            self._drawn[key] = Bootstrap.over(names, resamples=self.resamples)
        return self._drawn[key]


def find_closest(leads: Sequence[schemas.Lead]) -> list[schemas.Lead]:
    """Return for each measure the lead over the closest baseline map."""
    of_measures = [[lead for lead in leads if lead.measure == name] for name in dict.fromkeys(x.measure for x in leads)]
    return [min(some, key=lambda lead: lead.difference.value or 0.0) for some in of_measures]


def widen_by_draws(difference: float, ends: Sequence[float], spread: float) -> list[float]:
    """Return the interval `ends` of a lead over random weights, widened by the variation between draws.

    `spread` is that of `baseline_scores.spread_of_draws`; if it is NaN, so are both ends.
    """
    below, above = (float(np.hypot(difference - end, spread)) for end in ends)
    return [difference - below, difference + above]


def _by_measure(
    rows: pd.DataFrame, references: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.str_], dict[str, Floats]]]:
    """Yield each measure, the groups of its rows, and its columns (value and references) as arrays: fast to cut out."""
    if rows.empty:
        return
    codes, names = pd.factorize(rows["measure"])
    groups = rows["group"].to_numpy(dtype=str)
    columns = {name: rows[name].to_numpy(dtype=float) for name in ("value", *references) if name in rows}
    parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    for name, at in zip(names, parts, strict=True):
        yield str(name), groups[at], {column: values[at] for column, values in columns.items()}


def _mean(values: Floats) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    count = int((~np.isnan(values)).sum())
    return float(np.nansum(values)) / count if count else float("nan")


def summarise(table: pd.DataFrame, *, images: int, resamples: int = 2000) -> dict[str, schemas.SaliencyDocument]:
    """Return the part "saliency" of metrics.json by method, the random map last; see `SaliencyDocument`.

    `images`: how many there are in all; those without a mask are left out and counted. A withheld hit rate is null. A
    map of one cell has only its share of null maps.
    """
    counts = Summary(resamples)
    names = sorted(table["method"].unique(), key=lambda name: (name == registry.RANDOM_MAP,))
    return {str(name): _method(str(name), table[table["method"] == name], counts, images) for name in names}


def cells_of(rows: pd.DataFrame) -> str:
    """Return rows and columns of a method's map, "3 x 3"; empty if it has every pixel."""
    return str(rows["cells"].fillna("").iloc[0]) if len(rows) else ""


def describe_ceiling(rows: pd.DataFrame) -> str:
    """Return why a method has no hit rate (the best of its cells hits less often than chance); empty if it has one."""
    ceiling = rows[(rows["measure"] == CEILING) & (rows["condition"] == CLEAN)]
    best, chance = (ceiling["value"].mean(), ceiling["chance"].mean()) if len(ceiling) else (np.nan, np.nan)
    if not best < chance:
        return ""
    cells = f"the best of its {ceiling['cells'].iloc[0]} cells"
    return f"withheld: {cells} would hit {best:.3f} of the masks, chance {chance:.3f}"


def _method(name: str, rows: pd.DataFrame, counts: Summary, images: int) -> schemas.SaliencyDocument:
    cells = cells_of(rows)
    if cells == registry.ONE_CELL:
        withheld, rows = registry.NO_MAP, rows[rows["measure"] == "null_map"]
    elif withheld := describe_ceiling(rows):
        rows = rows[rows["measure"] != registry.HIT_RATE]
    clean, perturbed = rows[rows["condition"] == CLEAN], rows[rows["condition"] == STABILITY_ATTACK]
    stable = perturbed["measure"].isin(_STABLE)
    faithful = clean["measure"].isin(_FAITHFUL)
    faithfulness, clean = clean[faithful], clean[~faithful]
    right = clean[clean["predicted"] == clean["class"]]
    leads = counts.leads(clean, [*registry.REFERENCES, *SHARPENED, SPREAD])
    over = [lead for lead in leads if lead.baseline != registry.RANDOMISED]
    part = schemas.SaliencyDocument(
        target="label",
        n=_images(clean),
        without_mask=images - _images(clean),
        cells=cells,
        withheld=withheld,
        over_baselines=[
            *(lead for lead in over if lead.measure in registry.HEADLINE_MEASURES),
            *counts.leads(faithfulness, ["brightness"]),
        ],
        beyond=find_closest(over),
        correct=schemas.Measures(n=_images(right)).with_figures(counts.means(right)),
        by_lesion=list(_by_lesion(clean, counts)),
        stability=list(_stability(rows, counts)),
        sanity=list(_sanity(rows, counts)),
        perturbed=schemas.Perturbed(
            attack=STABILITY_ATTACK, epsilon=perturbed["epsilon"].max() if len(perturbed) else None, n=_images(clean)
        ).with_figures(counts.means(perturbed[~stable])),
    ).with_figures(counts.means(clean) | counts.means(perturbed[stable]) | _overall(rows, counts))
    if len(tuned := rows["threshold"].dropna()):
        part.threshold = float(tuned.iloc[0])
    if len(faithfulness):
        part.faithfulness = schemas.Measures(n=_images(faithfulness)).with_figures(counts.means(faithfulness))
    if over_random := [lead for lead in leads if lead.baseline == registry.RANDOMISED]:
        drawn = clean[clean[registry.RANDOMISED].notna()]
        part.random_weights = schemas.RandomWeights(n=_images(drawn), draws=len(DRAWS), leads=over_random)
    if withheld:
        for measured in (part, part.correct, part.perturbed, *part.by_lesion):
            if measured is not None and measured.figures:
                measured.figures[registry.HIT_RATE] = schemas.Figure(value=None)
    set_verdict(name, part)
    return part


def _images(rows: pd.DataFrame) -> int:
    return int(rows["sample_id"].nunique())


def _by_lesion(clean: pd.DataFrame, counts: Summary) -> Iterator[schemas.Stratum]:
    """Yield figures of images whose lesion covers the lungs, of the others, and of thirds by lesion size."""
    share = clean["lesion"]
    sizes = clean.drop_duplicates("sample_id")["lesion"].dropna()
    if not len(sizes):
        return
    low, high = np.quantile(sizes, [1 / 3, 2 / 3])
    strata = {
        "covers the lungs": (share >= COVERED, COVERED, 1.0),
        "part of the lungs": (share < COVERED, 0.0, COVERED),
        "smallest third": (share <= low, 0.0, low),
        "middle third": ((share > low) & (share <= high), low, high),
        "largest third": (share > high, high, 1.0),
    }
    for name, (chosen, start, end) in strata.items():
        part = schemas.Stratum(stratum=name, start=start, end=end, n=_images(clean[chosen]))
        yield part.with_figures(counts.means(clean[chosen]))


def _stability(rows: pd.DataFrame, counts: Summary) -> Iterator[schemas.Change]:
    """Yield for each change the similarity of clean and changed maps."""
    changes = rows[rows["measure"].isin((*_STABLE, *_MOVED))]
    for condition, some in changes.groupby("condition", sort=False):
        artefact = some["measure"].isin(_MOVED).any()
        severity = int(some["severity"].max())
        kind = "artefact" if artefact else "corruption" if severity else "attack"
        yield schemas.Change(
            condition=str(condition), kind=kind, epsilon=some["epsilon"].max(), severity=severity, n=_images(some)
        ).with_figures(counts.means(some))


def _overall(rows: pd.DataFrame, counts: Summary) -> dict[str, schemas.Figure]:
    """Return one figure for all corruptions, and two for all artefacts: means over each image's mean."""
    figures: dict[str, schemas.Figure] = {}
    for name, values in average_changes(rows).items():
        figures |= counts.means(values.assign(measure=name))
    on_artefacts = rows[rows["measure"] == "artefact_energy"]
    if len(on_artefacts):
        figures["artefact_energy_chance"] = schemas.Figure(value=on_artefacts["chance"].mean())
    return figures


def _sanity(rows: pd.DataFrame, counts: Summary) -> Iterator[schemas.Stage]:
    """Yield the similarity with the trained model's maps at each stage of the cascading randomisation."""
    random = rows[rows["condition"].str.startswith(CASCADE)]
    for condition, some in random.groupby("condition", sort=False):
        figures = {name.replace("randomised_", ""): value for name, value in counts.means(some).items()}
        yield schemas.Stage(part=str(condition).removeprefix(CASCADE), n=_images(some)).with_figures(figures)


def average_changes(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return each image's mean over all corruptions or artefacts of one method: value and group, by sample.

    Keys: `corruption_ssim` and `artefact_ssim` (with the clean map), `artefact_gain` (saliency moved to the artefact).
    """
    artefacts = rows.loc[rows["measure"] == "artefact_gain", "condition"].unique()
    drawn, stability = rows["condition"].isin(artefacts), rows["measure"] == "stability_ssim"
    kinds = {
        "corruption_ssim": stability & (rows["severity"] > 0) & ~drawn,
        "artefact_ssim": stability & drawn,
        "artefact_gain": rows["measure"] == "artefact_gain",
    }
    return {name: means_over_severities(rows[chosen]) for name, chosen in kinds.items() if chosen.any()}


def means_over_severities(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each image's mean over its rows: value and group, by sample."""
    rows = rows.assign(value=rows["value"].astype(float))
    if rows["sample_id"].is_unique:
        return rows.set_index("sample_id")[["value", "group"]]
    by_sample = rows.groupby("sample_id", sort=False)
    return pd.DataFrame({"value": by_sample["value"].mean(), "group": by_sample["group"].first()})


def set_verdict(method: str, part: schemas.SaliencyDocument) -> None:
    """Set `shows`, `verdict`, `survives` and `void` of a method that depends on the network; baseline maps have none.

    A map shows something by a measure of HEADLINE_MEASURES if two intervals lie above 0: those of its leads over the
    closest baseline map and over random weights.
    """
    base = registry.Method.parse(method).base
    over, beyond = _over_random(part), {lead.measure: lead for lead in part.beyond}
    both = {name: (beyond[name], over[name]) for name in registry.HEADLINE_MEASURES if name in over and name in beyond}
    if base in registry.BASELINE_MAPS or base not in registry.SALIENCY or not both:
        return
    part.shows = [name for name, leads in both.items() if all(map(_above, leads))]
    what = "says nothing of what the network has learnt"
    if part.shows:
        what, both = "above its other baseline maps and above random weights", {name: both[name] for name in part.shows}
    texts = [
        f"{_label(name)} {_format_leads(lead for lead in leads if part.shows or not _above(lead))}"
        for name, leads in both.items()
    ]
    part.verdict = f"{what}: {'; '.join(texts)}"
    same = (part.figure(SIMILARITY).value or 0.0) >= SAME_MAP
    part.survives = _survives(part, over, same=same)
    part.void = [*registry.AGAINST_MASKS] if same else list_void(part)


def list_alarms(saliency: Mapping[str, schemas.SaliencyDocument]) -> list[schemas.Alarm]:
    """Return an alarm for each method whose map stays with random weights."""
    return [
        schemas.Alarm(kind=SURVIVES, text=f"{registry.Method.parse(name).label}: {part.survives}")
        for name, part in saliency.items()
        if part.survives
    ]


def list_void(part: schemas.SaliencyDocument) -> list[str]:
    """Return the measures that are above chance, and as high with random weights."""
    over = _over_random(part)
    names = [name for name in registry.HEADLINE_MEASURES if name in over and not _above(over[name])]
    names = [name for name in names if over[name].difference.interval is not None]
    return [name for name in names if part.figure(name).against_chance == "above"]


def _over_random(part: schemas.SaliencyDocument) -> dict[str, schemas.Lead]:
    return {lead.measure: lead for lead in part.random_weights.leads} if part.random_weights else {}


def _survives(part: schemas.SaliencyDocument, over: Mapping[str, schemas.Lead], *, same: bool) -> str:
    """Return why the map does not depend on what the network learnt, as if it is the `same`; empty if it does."""
    void, reasons = list_void(part), []
    for name in void:
        figure, ends = part.figure(name), _format_interval(over[name].difference.interval)
        reasons.append(
            f"{_label(name)} is {figure.randomised:.3f} with random weights, {figure.value:.3f} with its own{ends}"
        )
    names = " and ".join(", ".join(_label(name) for name in void).rsplit(", ", 1))
    so = f"{names} {'is' if len(void) == 1 else 'are'} not of the network"
    if same:
        reasons.append(f"SSIM with the map of random weights is {part.figure(SIMILARITY).value:.2f}")
        so = "no figure of it is of the network"
    return f"the map survives randomising the network: {'; '.join(reasons)}: {so}" if reasons else ""


def _above(lead: schemas.Lead) -> bool:
    return lead.difference.interval is not None and lead.difference.interval[0] > 0


def _format_leads(leads: Iterable[schemas.Lead]) -> str:
    return ", ".join(
        f"{lead.difference.value:+.3f}{_format_interval(lead.difference.interval)} over "
        f"{registry.format_baseline(lead.baseline)}"
        for lead in leads
    )


def _format_interval(pair: tuple[float, float] | None) -> str:
    return f" [{pair[0]:+.3f}, {pair[1]:+.3f}]" if pair else ""


def _label(measure: str) -> str:
    return registry.MEASURES[measure].label
