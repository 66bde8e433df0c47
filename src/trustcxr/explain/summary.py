"""The table of saliency.parquet -> the part "saliency" of metrics.json: means with intervals, beside chance."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.catalogue import AGAINST_MASKS, REFERENCES
from trustcxr.explain.scores import RANDOM, RANDOMISED
from trustcxr.explain.stability import ATTACKED, CLEAN
from trustcxr.statistics import Bootstrap, Floats, interval, share_interval

COVERED = 0.95  # from this share of the lungs on, an infection mask tells no place within them
_SHARES = ("null_map_rate", "pointing_hit_rate")
_NAMES = {"null_map": "null_map_rate"}
_FAITHFUL = ("insertion", "deletion", "road")
_STABLE = ("stability_ssim", "stability_rank_correlation", "stability_top_tenth")
_MOVED = ("artefact_energy", "artefact_gain")


class Summary:
    """Means and intervals over groups; the resamples of one set of images are drawn once."""

    def __init__(self, resamples: int) -> None:
        self.resamples = resamples
        self._drawn: dict[bytes, Bootstrap] = {}

    def means(self, rows: pd.DataFrame) -> dict[str, Any]:
        """For each measure among the rows its mean, interval, and the means of what stands beside it."""
        part: dict[str, Any] = {}
        for measure, values in rows.groupby("measure", sort=False):
            name = _NAMES.get(str(measure), str(measure))
            bootstrap = self._over(values["group"])
            means = bootstrap.means(values["value"])
            ends = share_interval(bootstrap, means) if name in _SHARES else interval(means)
            part |= {name: float(means[0]), f"{name}_ci": ends}
            # Of the same images as the mean: one without a lung mask, say, has neither.
            known = values[values["value"].notna()]
            for reference in REFERENCES:
                if reference in known and known[reference].notna().any():
                    part[f"{name}_{reference}"] = float(known[reference].mean())
        return part

    def beyond(self, rows: pd.DataFrame) -> list[dict[str, Any]]:
        """Of each measure against masks, what the map has over the reference that comes closest, on the same images."""
        found = []
        for measure, values in rows[rows["measure"].isin(AGAINST_MASKS)].groupby("measure", sort=False):
            least: dict[str, Any] = {}
            for reference in REFERENCES:
                if reference not in values or not values[reference].notna().any():
                    continue
                means = self._over(values["group"]).means(values["value"] - values[reference])
                if not least or means[0] < least["difference"]:
                    least = {"control": reference, "difference": float(means[0]), "difference_ci": interval(means)}
            found += [{"measure": str(measure)} | least] if least else []
        return found

    def mean(self, values: pd.Series, groups: pd.Series) -> tuple[float, list[float]]:
        """One mean and its interval."""
        means: Floats = self._over(groups).means(values)
        return float(means[0]), interval(means)

    def _over(self, groups: pd.Series) -> Bootstrap:
        names = groups.to_numpy(dtype=str)
        key = names.tobytes()
        if key not in self._drawn:
            self._drawn[key] = Bootstrap.over(names, resamples=self.resamples)
        return self._drawn[key]


def summarise(table: pd.DataFrame, *, images: int, resamples: int = 2000) -> dict[str, Any]:
    """The part "saliency" of metrics.json: for each method every measure's mean, interval, and what stands beside it.

    Beside each: REFERENCES; "beyond": what the map has over the closest. Measures are of the clean images; "correct":
    of those among them that the model gets right; "by_lesion": by how much of the lungs the lesion covers; "perturbed":
    of the FGSM images; "stability", "faithfulness", "sanity". `images` is how many there were in all; those without a
    mask are left out and counted. Methods stand as they were asked for, the random map last.
    """
    counts = Summary(resamples)
    names = sorted(table["method"].unique(), key=lambda name: (name == RANDOM,))
    return {str(name): _method(table[table["method"] == name], counts, images) for name in names}


def _method(rows: pd.DataFrame, counts: Summary, images: int) -> dict[str, Any]:
    clean, perturbed = rows[rows["condition"] == CLEAN], rows[rows["condition"] == ATTACKED]
    stable = perturbed["measure"].isin(_STABLE)
    faithful = clean["measure"].isin(_FAITHFUL)
    faithfulness, clean = clean[faithful], clean[~faithful]
    n = clean["sample_id"].nunique()
    right = clean[clean["predicted"] == clean["class"]]
    part = counts.means(clean) | counts.means(perturbed[stable]) | {"target": "label", "n": n}
    part["without_mask"] = images - n
    part["beyond"] = counts.beyond(clean)
    tuned = rows["threshold"].dropna() if "threshold" in rows else pd.Series(dtype=float)
    if len(tuned):
        part["threshold"] = float(tuned.iloc[0])
    part["correct"] = counts.means(right) | {"n": right["sample_id"].nunique()}
    part["by_lesion"] = list(_by_lesion(clean, counts))
    part["stability"] = list(_stability(rows, counts))
    part |= _overall(rows, counts)
    if len(faithfulness):
        part["faithfulness"] = counts.means(faithfulness) | {"n": faithfulness["sample_id"].nunique()}
    part["sanity"] = list(_sanity(rows, counts))
    radius = float(perturbed["epsilon"].max()) if len(perturbed) else float("nan")
    part["perturbed"] = counts.means(perturbed[~stable]) | {"attack": ATTACKED, "epsilon": radius, "n": n}
    return part


def _by_lesion(clean: pd.DataFrame, counts: Summary) -> Iterator[dict[str, Any]]:
    """Images whose lesion covers the lungs, and the others; then thirds by how much it covers."""
    if "lesion" not in clean:
        return
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
        some = clean[chosen]
        about = {"stratum": name, "from": float(start), "to": float(end), "n": some["sample_id"].nunique()}
        yield about | (counts.means(some) if len(some) else {})


def _stability(rows: pd.DataFrame, counts: Summary) -> Iterator[dict[str, Any]]:
    """A row for each change: how like the clean map the map of the changed image is."""
    kept = rows[rows["measure"].isin((*_STABLE, *_MOVED))]
    for condition, some in kept.groupby("condition", sort=False):
        artefact = some["measure"].isin(_MOVED).any()
        severity = int(some["severity"].max()) if "severity" in some else 0
        kind = "artefact" if artefact else "corruption" if severity else "attack"
        about = {"condition": str(condition), "kind": kind, "epsilon": float(some["epsilon"].max())}
        yield about | {"severity": severity, "n": some["sample_id"].nunique()} | counts.means(some)


def _overall(rows: pd.DataFrame, counts: Summary) -> dict[str, Any]:
    """One figure for all corruptions, and two for all artefacts: each image's mean over them."""
    found: dict[str, Any] = {}
    for name, values in over_changes(rows).items() if "severity" in rows else ():
        mean, ends = counts.mean(values["value"], values["group"])
        found |= {name: mean, f"{name}_ci": ends}
    on_artefacts = rows[rows["measure"] == "artefact_energy"]
    if len(on_artefacts):
        found["artefact_energy_chance"] = float(on_artefacts["chance"].mean())
    return found


def _sanity(rows: pd.DataFrame, counts: Summary) -> Iterator[dict[str, Any]]:
    """How like the trained model's maps are as the network is made random, from the logits down."""
    random = rows[rows["condition"].str.startswith(RANDOMISED)]
    for condition, some in random.groupby("condition", sort=False):
        found = counts.means(some)
        part = str(condition).removeprefix(RANDOMISED)
        yield {"part": part, "n": some["sample_id"].nunique()} | {
            name.replace("randomised_", ""): value for name, value in found.items()
        }


def over_changes(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What an image has over all corruptions or artefacts of one saliency method: value and group, by sample.

    `corruption_ssim`, `artefact_ssim`: the mean SSIM with the clean map; `artefact_gain`: how much of the saliency
    moved onto the artefact, mean over artefacts.
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
    """An image's mean over its rows: value and group, by sample."""
    by_sample = rows.assign(value=rows["value"].astype(float)).groupby("sample_id", sort=False)
    return by_sample.agg(value=("value", "mean"), group=("group", "first"))
