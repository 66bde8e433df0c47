"""Find features other than the disease that predict the class.

If a linear probe predicts the class from thumbnails without lungs, so can a network (Maguolo and Nanni 2021; DeGrave,
Janizek and Lee 2021).
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
WITHOUT_LUNGS = {
    "lungs blanked": "the image without its lungs",
    "outer frame": "the outer frame of the image",
    "lung shape": "the shape of the lung mask",
    "grey levels": "the image's overall brightness",
}
_FEWEST = 10  # images of each class, to train on and to test on
_MOST = 8000  # images to train a probe on: more only take time
_STRENGTH = 0.01  # inverse of the L2 penalty
_FOLDS, _RESAMPLES = 5, 1000


@dataclass(frozen=True)
class Probe:
    """The balanced accuracy, 0..1, of predicting the class from one view of the images."""

    view: str
    accuracy: float
    accuracy_ci: list[float]
    chance: float
    trained_on: int
    tested_on: int
    how: str

    @property
    def above_chance(self) -> bool:
        """True if the whole interval is more than 0.05 above chance."""
        return self.accuracy_ci[0] > self.chance + 0.05


def run_probes(manifest: Manifest, scan: Scan) -> list[Probe]:
    """Fit a logistic regression for each possible view, tested on Test, else by cross-validation over groups."""
    from trustcxr.console import track

    table = manifest.table
    needs_lungs = ("lungs blanked", "lungs only", "lung shape")
    possible = [v for v in VIEWS if v not in needs_lungs or scan.has_lungs.any()]
    probes = []
    for view in track(possible, "Looking for confounds"):
        rows = np.flatnonzero(scan.has_lungs if view in needs_lungs else scan.readable)
        probes.append(_fit_probe(view, select_features(view, scan, rows), table.iloc[rows]))
    return [probe for probe in probes if probe is not None]


def select_features(view: str, scan: Scan, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return features (len(rows), F) float32 of one of VIEWS."""
    if view == "grey levels":
        return scan.grey[rows]
    thumbnails = {"lungs blanked": scan.blanked, "lungs only": scan.lungs, "lung shape": scan.shapes}
    if view in thumbnails:
        return thumbnails[view][rows].reshape(len(rows), -1).astype(np.float32)
    pooled = scan.thumbs[rows].reshape(len(rows), PROBE, 2, PROBE, 2).mean(axis=(2, 4), dtype=np.float32)
    if view == "outer frame":
        ring = np.ones((PROBE, PROBE), bool)
        ring[FRAME:-FRAME, FRAME:-FRAME] = False
        return pooled[:, ring]
    return pooled.reshape(len(rows), -1)


def _fit_probe(view: str, x: NDArray[np.float32], table: pd.DataFrame) -> Probe | None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels, groups = table["class"].to_numpy(str), table["group"].to_numpy(str)
    test = (table["split"] == "Test").to_numpy()
    names = np.unique(labels)
    if len(names) < 2:
        return None
    if test.any() and not test.all():
        how, fewest = "trained on all but Test, tested on Test", _FEWEST
        plan = [(np.flatnonzero(~test), np.flatnonzero(test))]
    else:
        if min((labels == n).sum() for n in names) < 2 * _FEWEST or len(np.unique(groups)) < _FOLDS:
            return None
        how, fewest = f"{_FOLDS}-fold cross-validation over groups", 1
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
        plan = list(folds.split(x, labels, groups))
    answers, tested = np.full(len(labels), "", dtype=labels.dtype), np.zeros(len(labels), bool)
    trained_on = 0
    for train, held_out in plan:
        if len(train) > _MOST:
            train = np.sort(np.random.default_rng(0).choice(train, _MOST, replace=False))
        if min((labels[part] == n).sum() for n in names for part in (train, held_out)) < fewest:
            return None
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=1000, class_weight="balanced"))
        model.fit(x[train].astype(np.float64), labels[train])
        answers[held_out] = model.predict(x[held_out].astype(np.float64))
        tested[held_out], trained_on = True, len(train)
    member = labels[tested][:, None] == names
    right = member & (answers == labels)[tested][:, None]
    bootstrap = Bootstrap.over(groups[tested], resamples=_RESAMPLES, seed=0)
    totals = bootstrap.totals(np.stack([right, member], axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.nanmean(totals[:, 0] / totals[:, 1], axis=1)  # balanced; of the sample, then of each resample
    ci = interval(accuracy)
    return Probe(view, float(accuracy[0]), ci, 1 / len(names), trained_on, int(tested.sum()), how)


@dataclass(frozen=True)
class Association:
    """The association of the class with a column: Cramér's V, 0 (none) to 1 (complete).

    p_value: chi-square over groups of images, corrected for the number of columns (Holm 1979).
    """

    column: str
    cramers_v: float
    p_value: float
    labelled: int
    n: int
    counts: dict[str, dict[str, int]]  # value -> class -> images


def measure_associations(manifest: Manifest, scan: Scan) -> list[Association]:
    """Measure the association of the class with source, view, file format, colour mode and size, if they vary."""
    readable = scan.readable
    table = manifest.table[readable]
    files = scan.files[readable]
    size = files["width"].astype(int).astype(str) + " x " + files["height"].astype(int).astype(str)
    columns = {"source": table["source"], "view": table["view"]}
    size = size.where(size.isin(size.value_counts().index[:8]), "other")  # few columns make a better test
    columns |= {"file format": files["format"], "colour mode": files["mode"], "image size": size}
    labels, groups = table["class"].to_numpy(str), table["group"].to_numpy(str)
    measured = [_association(name, values.to_numpy(), labels, groups) for name, values in columns.items()]
    results = [each for each in measured if each is not None]
    corrected = holm([each.p_value for each in results])
    return [replace(each, p_value=float(p)) for each, p in zip(results, corrected, strict=True)]


def _association(
    column: str, values: NDArray[np.object_], labels: NDArray[np.str_], groups: NDArray[np.str_]
) -> Association | None:
    """Measure one association; a group counts once in the test, since its images are not independent."""
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association

    has_value = pd.notna(values)
    words = pd.Series(np.where(has_value, values, "unknown").astype(str))
    counts = pd.crosstab(words, pd.Series(labels))
    if not has_value.any() or min(counts.shape) < 2:
        return None
    v = float(association(counts.to_numpy(), method="cramer"))
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    once = pd.crosstab(words, pd.Series(labels), values=pd.Series(1 / sizes[member]), aggfunc="sum").fillna(0.0)
    p = float(chi2_contingency(once.to_numpy()).pvalue)
    rows = {str(value): {str(c): int(n) for c, n in row.items()} for value, row in counts.iterrows()}
    return Association(column, v, p, int(has_value.sum()), len(values), rows)
