"""Is a model with one sigmoid a finding what its file declares? Other names, ranges and inverted films are tried.

Findings go together: one that another finding's output ranks well is no mistake. So another declaration is believed
only by a clear margin that resamples of patients leave standing, and names only where each of them gains by the change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trustcxr import statistics
from trustcxr.evaluation.declared import inputs, inverted, names_said, with_input
from trustcxr.models.adapters.adapted import Adapted
from trustcxr.statistics import Bootstrap, Floats, interval

BETTER = 0.10  # AUROC, or mean of sensitivity and specificity, that another declaration must have more
HALFWAY = 0.75  # what it must have itself, of the same: halfway from chance to all
BLIND = 0.60  # mean of sensitivity and specificity below which a threshold tells next to nothing
ENOUGH = 10  # films that have a finding, and films that have it not, for it to speak for another declaration
_SURE = 0.998  # level of the interval that must lie above 0
_ALIKE = 0.01  # by which two declarations may differ and be as good as each other


@dataclass(frozen=True)
class Judged:
    """What is known of films and answered about them: `truth` and `margins` (N, F), `groups` (N,) of patients.

    truth: 1 present, 0 absent, NaN not known. margins: logits above the thresholds of the findings.
    """

    truth: Floats
    margins: Floats
    groups: NDArray[np.str_]

    def other(self, margins: Floats) -> "Judged":
        """The same films with other answers."""
        return Judged(self.truth, margins, self.groups)

    def at(self, rows: NDArray[np.intp]) -> "Judged":
        """Some of the films."""
        return Judged(self.truth[rows], self.margins[rows], self.groups[rows])

    def auroc(self, weights: Floats, finding: int, output: int | None = None) -> Floats:
        """How well an output (the finding's own unless said) ranks films by a finding, in each resample (R,)."""
        known = np.isfinite(self.truth[:, finding])
        scores = self.margins[known, finding if output is None else output]
        return statistics.auroc(scores, self.truth[known, finding] == 1, weights[:, known])

    def rates(self, weights: Floats, finding: int, output: int | None = None) -> Floats:
        """The mean of sensitivity and specificity of an output at its threshold, in each resample (R,)."""
        found, margins = [], self.margins[:, finding if output is None else output]
        for state in (0, 1):
            rows = self.truth[:, finding] == state
            right = (margins[rows] > 0) == bool(state)
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(weights[:, rows] @ right / weights[:, rows].sum(1))
        return np.mean(found, axis=0)


def places(truth: Floats) -> list[int]:
    """The findings that ENOUGH films have, and as many have not."""
    return [k for k in range(truth.shape[1]) if min((truth[:, k] == state).sum() for state in (0, 1)) >= ENOUGH]


def chosen(truth: Floats, count: int) -> NDArray[np.intp]:
    """Films (at most `count` for each finding) with and without each in turn, the same each time."""
    random = np.random.default_rng(0)
    turns = [
        (turn, k, state, int(row))
        for k in places(truth)
        for state in (0, 1)
        for turn, row in enumerate(random.permutation(np.flatnonzero(truth[:, k] == state)))
    ]
    return np.array(list(dict.fromkeys(row for *_, row in sorted(turns)))[: count * truth.shape[1]], dtype=np.intp)


def other_names(names: Sequence[str], films: Judged, *, table: str | None = None) -> str | None:
    """The names as they would have to be for each finding whose output is another's; None where none surely is.

    `table`: the file of given scores, whose columns have these names.
    """
    from scipy.optimize import linear_sum_assignment

    judged = places(films.truth)
    if len(judged) < 2:
        return None
    itself = np.ones((1, len(films.truth)))
    worth = np.array([[(films.auroc(itself, f, k) + films.rates(itself, f, k))[0] for f in judged] for k in judged])
    taken = dict(zip(judged, np.array(judged)[linear_sum_assignment(worth, maximize=True)[1]].tolist(), strict=True))
    weights = Bootstrap.over(films.groups).row_weights().astype(float)
    order = list(range(len(names)))
    for cycle in _cycles(taken):
        if _gain(films, weights, [(taken[k], k) for k in cycle]):
            for k in cycle:
                order[k] = taken[k]
    if order == list(range(len(names))):
        return None
    return names_said(names, order, table)


def other_input(model: nn.Module, images: Tensor, cuts: Floats, films: Judged) -> str | None:
    """The declaration of the input, in the words of the model file, with which findings are surely told better.

    `images` (N, 1, H, W) are those of `films`, `cuts` (F,) the logits above which findings are there. Better is to rank
    films better; or, where thresholds as declared tell next to nothing of any finding, to tell every one by them and
    to rank no worse. None where no other declaration does.
    """
    weights = Bootstrap.over(films.groups).row_weights().astype(float)
    judged = places(films.truth)
    if not judged:
        return None
    own = _figures(films, weights, judged)
    found = []
    for remedy, logits in _others(model, images):
        other = _figures(films.other(logits - cuts), weights, judged)
        if _ranks_better(own, other) or _tells_better(own, other):
            found.append((float(np.mean([figure[:, 0] for figure in other])), remedy))
    highest = max((mean for mean, _ in found), default=0.0)
    return next((remedy for mean, remedy in found if mean >= highest - _ALIKE), None)


def _figures(films: Judged, weights: Floats, judged: list[int]) -> tuple[Floats, Floats]:
    """AUROC, and the mean of both rates, of each finding in each resample: both (F, R)."""
    return (
        np.array([films.auroc(weights, k) for k in judged]),
        np.array([films.rates(weights, k) for k in judged]),
    )


def _ranks_better(own: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> bool:
    areas = other[0].mean(0)
    return bool(areas[0] >= HALFWAY) and _surely(areas - own[0].mean(0))


def _tells_better(own: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> bool:
    blind = bool((own[1][:, 0] <= BLIND).all() and (other[1][:, 0] >= own[1][:, 0] + BETTER).all())
    no_worse = bool(other[0][:, 0].mean() >= own[0][:, 0].mean())
    rates = other[1].mean(0)
    return blind and no_worse and bool(rates[0] >= HALFWAY) and _surely(rates - own[1].mean(0))


def _gain(films: Judged, weights: Floats, moved: list[tuple[int, int]]) -> bool:
    """Whether each of these findings is surely told better by another output than by its own, (finding, output) each.

    Of all it is ranked by a clear margin better; or told better at the thresholds by one, and ranked somewhat better:
    where thresholds alone are badly chosen an output still ranks its own finding best.
    """
    ranked: list[Floats] = []
    told: list[Floats] = []
    for finding, output in moved:
        for figures, gains in ((films.auroc, ranked), (films.rates, told)):
            other = figures(weights, finding, output)
            gains.append(np.where(other[0] >= HALFWAY, other - figures(weights, finding), -1.0))
    if all(_surely(gains) for gains in ranked):
        return True
    better = all(gains[0] > 0 for gains in ranked) and interval(np.mean(ranked, axis=0))[0] > 0
    return better and all(_surely(gains) for gains in told)


def _surely(gains: Floats) -> bool:
    return bool(gains[0] >= BETTER) and interval(gains, _SURE)[0] > 0


def _cycles(taken: dict[int, int]) -> Iterator[list[int]]:
    """The cycles of a permutation, but for what stays in its place."""
    left = {k for k, other in taken.items() if other != k}
    while left:
        cycle = [min(left)]
        while (after := taken[cycle[-1]]) != cycle[0]:
            cycle.append(after)
        left -= set(cycle)
        yield cycle


def _others(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Floats]]:
    """Each other declaration of the input: what to change, and the logits (N, F) with it."""
    yield inverted(model), _logits(model, 1 - images)
    if isinstance(model, Adapted):
        for remedy, taken in inputs(model.taken):
            yield remedy, _logits(with_input(model, taken), images)


def _logits(model: nn.Module, images: Tensor) -> Floats:
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(64)]).double().cpu().numpy()
