"""What, other than the disease, tells the classes of a data set apart.

A linear probe on thumbnails that never saw the lungs, and still knows the class, shows that a network could know it
the same way (Maguolo and Nanni 2021; DeGrave, Janizek and Lee 2021).
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trustcxr.data.checks.scan import PROBE, Scan
from trustcxr.data.manifest import Manifest
from trustcxr.statistics import Bootstrap, holm, interval

FRAME = 3  # of 32 pixels, as 24 of 256
VIEWS = {
    "full image": "the whole thumbnail",
    "lungs blanked": "the thumbnail with the lungs at 0",
    "lungs only": "the lungs with all else at 0",
    "outer frame": "the outer 24 of 256 pixels",
    "lung shape": "the lung mask alone",
    "grey levels": "mean, spread, quartiles, share nearly black and nearly white",
}
WITHOUT_LUNGS = ("lungs blanked", "outer frame", "lung shape", "grey levels")
_FEWEST = 10  # images of each class, to train on and to test on
_MOST = 8000  # images to train a probe on: more change nothing but the time
_STRENGTH = 0.01  # inverse of the L2 penalty
_FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """How well one view of the images tells the classes apart. Accuracies are balanced, 0..1."""

    view: str
    accuracy: float
    accuracy_ci: list[float]
    chance: float
    trained_on: int
    tested_on: int
    how: str

    @property
    def above_chance(self) -> bool:
        """The whole interval lies more than 0.05 above chance."""
        return self.accuracy_ci[0] > self.chance + 0.05


def run_probes(manifest: Manifest, scan: Scan, *, seed: int = 0, resamples: int = 1000) -> list[Probe]:
    """A logistic regression for each view that the data allow, tested on Test, else by cross-validation over groups."""
    from trustcxr.console import track

    table = manifest.table
    possible = [v for v in VIEWS if v not in ("lungs blanked", "lungs only", "lung shape") or scan.has_lungs.any()]
    probes = []
    for view in track(possible, "Looking for confounds", len(possible)):
        lungs_needed = view in ("lungs blanked", "lungs only", "lung shape")
        rows = np.flatnonzero(scan.has_lungs if lungs_needed else scan.readable)
        part = table.iloc[rows]
        probe = _probe(view, select_features(view, scan, rows), part, seed, resamples)
        if probe is not None:
            probes.append(probe)
    return probes


def select_features(view: str, scan: Scan, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """(len(rows), features) float32 of one of VIEWS."""
    if view == "grey levels":
        return scan.grey[rows]
    of_view = {"lungs blanked": scan.blanked, "lungs only": scan.lungs, "lung shape": scan.shapes}
    if view in of_view:
        return of_view[view][rows].reshape(len(rows), -1).astype(np.float32)
    pooled = scan.thumbs[rows].reshape(len(rows), PROBE, 2, PROBE, 2).mean(axis=(2, 4), dtype=np.float32)
    if view == "outer frame":
        ring = np.ones((PROBE, PROBE), bool)
        ring[FRAME:-FRAME, FRAME:-FRAME] = False
        return pooled[:, ring]
    return pooled.reshape(len(rows), -1)


def _probe(view: str, x: NDArray[np.float32], table: pd.DataFrame, seed: int, resamples: int) -> Probe | None:
    labels, groups = table["class"].to_numpy(str), table["group"].to_numpy(str)
    test = (table["split"] == "Test").to_numpy()
    names = np.unique(labels)
    if len(names) < 2:
        return None
    if test.any() and not test.all():
        how, plan = "trained on all but Test, tested on Test", [(np.flatnonzero(~test), np.flatnonzero(test))]
    else:
        from sklearn.model_selection import StratifiedGroupKFold

        if min((labels == n).sum() for n in names) < 2 * _FEWEST or len(np.unique(groups)) < _FOLDS:
            return None
        how = f"{_FOLDS}-fold cross-validation over groups"
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
        plan = list(folds.split(x, labels, groups))
    answers, tested = np.full(len(labels), "", dtype=labels.dtype), np.zeros(len(labels), bool)
    trained_on = 0
    for train, held_out in plan:
        train = _at_most(train, seed)
        if min((labels[part] == n).sum() for n in names for part in (train, held_out)) < (
            _FEWEST if len(plan) == 1 else 1
        ):
            return None
        answers[held_out], tested[held_out], trained_on = _fit(x[train], labels[train], x[held_out]), True, len(train)
    accuracy = _balanced(labels[tested], answers[tested], groups[tested], names, resamples, seed)
    ci = interval(accuracy)
    return Probe(view, float(accuracy[0]), ci, 1 / len(names), trained_on, int(tested.sum()), how)


def _at_most(rows: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    if len(rows) <= _MOST:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, _MOST, replace=False))


def _fit(x: NDArray[np.float32], labels: NDArray[np.str_], held_out: NDArray[np.float32]) -> NDArray[np.str_]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=1000, class_weight="balanced"))
    answers: NDArray[np.str_] = model.fit(x.astype(np.float64), labels).predict(held_out.astype(np.float64))
    return answers


def _balanced(
    labels: NDArray[np.str_],
    answers: NDArray[np.str_],
    groups: NDArray[np.str_],
    names: NDArray[np.str_],
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Balanced accuracy of the sample and of each resample of its groups: (resamples + 1,)."""
    of_class = labels[:, None] == names
    right = of_class & (answers == labels)[:, None]
    totals = Bootstrap.over(groups, resamples=resamples, seed=seed).totals(np.stack([right, of_class], axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmean(totals[:, 0] / totals[:, 1], axis=1)


@dataclass(frozen=True)
class Association:
    """How strongly the class goes with something known of the images: Cramér's V, 0 (not at all) to 1 (wholly).

    p_value: chi-square over groups of images, corrected for the number of columns (Holm 1979).
    """

    column: str
    cramers_v: float
    p_value: float
    known: int
    n: int
    counts: dict[str, dict[str, int]]  # value -> class -> images


def measure_associations(manifest: Manifest, scan: Scan) -> list[Association]:
    """The class against source, view, file format, colour mode and size, each where it varies."""
    readable = scan.readable
    table = manifest.table[readable]
    files = scan.files[readable]
    size = files["width"].astype(int).astype(str) + " x " + files["height"].astype(int).astype(str)
    columns = {"source": table["source"], "view": table["view"]}
    columns |= {"file format": files["format"], "colour mode": files["mode"], "image size": _common(size)}
    labels, groups = table["class"].to_numpy(str), table["group"].to_numpy(str)
    told = [_association(name, values.to_numpy(), labels, groups) for name, values in columns.items()]
    found = [each for each in told if each is not None]
    corrected = holm([each.p_value for each in found])
    return [replace(each, p_value=float(p)) for each, p in zip(found, corrected, strict=True)]


def _common(values: "pd.Series[str]", most: int = 8) -> "pd.Series[str]":
    """Values beyond the commonest few become 'other', so that a table of counts stays a table."""
    kept = values.value_counts().index[:most]
    return values.where(values.isin(kept), "other")


def _association(
    column: str, values: NDArray[np.object_], labels: NDArray[np.str_], groups: NDArray[np.str_]
) -> Association | None:
    """Images of one patient or group are no independent evidence: for the test a group counts once."""
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association

    known = pd.notna(values)
    words = pd.Series(np.where(known, values, "unknown").astype(str))
    counts = pd.crosstab(words, pd.Series(labels))
    if not known.any() or min(counts.shape) < 2:
        return None
    v = float(association(counts.to_numpy(), method="cramer"))
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    once = pd.crosstab(words, pd.Series(labels), values=pd.Series(1 / sizes[member]), aggfunc="sum").fillna(0.0)
    p = float(chi2_contingency(once.to_numpy()).pvalue)
    rows = {str(value): {str(c): int(n) for c, n in row.items()} for value, row in counts.iterrows()}
    return Association(column, v, p, int(known.sum()), len(values), rows)
