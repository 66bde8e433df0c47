"""Judge an audit by acceptance criteria: met, not met, or not settled by this many images."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy import stats

from trustcxr.audit import verdict
from trustcxr.audit.compare import compare_documents
from trustcxr.audit.facts import predictive_values
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.subject import Subject
from trustcxr.errors import UserError, suggest_nearest
from trustcxr.recipes import criteria_file
from trustcxr.recipes.criteria_file import CriteriaRecipe, Criterion, Selector, Step
from trustcxr.registry import WORST_CASE
from trustcxr.statistics import LEVEL, difference_interval
from trustcxr.storage import layout
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, CriterionResult, Share, read_audit

POWER = 0.8  # chance that the images needed settle a criterion
_LOWER_IS_BETTER = (
    *("ece", "ece_plug_in", "ece_scaled", "flip_rate", "success_rate", "log_loss", "log_loss_scaled"),
    *("likelihood_negative", "unmoved"),
)
_NO_SHARES = ("likelihood_positive", "likelihood_negative", "log_loss", "log_loss_scaled", "temperature")
_ENTRY_KEYS = ("finding", "attack", "epsilon", "column", "name", "corruption", "severity", "by")


@dataclass(frozen=True)
class Figure:
    """A figure of audit.json: its path, value and interval, and the images it is over."""

    path: str
    share: Share
    n: int | None
    counts: bool = False  # a whole number, not a share

    @property
    def last(self) -> str:
        """Return the last name of the path."""
        return self.path.rpartition(".")[2]


def choose_criteria(subject: Subject, recipe: CriteriaRecipe | None) -> CriteriaRecipe:
    """Return the criteria, or without any those that the model file names, with the prevalence of both."""
    recipe = recipe or CriteriaRecipe()
    if recipe.criteria or not isinstance(subject, ExternalModel) or not subject.criteria:
        return recipe
    declared = criteria_file.read_criteria(Path(subject.criteria))
    return declared.model_copy(update={"prevalence": {**declared.prevalence, **recipe.prevalence}})


def apply_criteria(document: AuditDocument, recipe: CriteriaRecipe, out: Path, *, measured_before: bool) -> None:
    """Set predictive values, the results of acceptance criteria and the verdict, which need no new measurement.

    `measured_before`: the figures stood before this command. Then a criterion was written beforehand only if the audit
    had it already, with the same figure and bound.
    """
    before = {_identify(row) for row in document.criteria if row.beforehand}
    document.predictive_values = predictive_values(document.operating_points, recipe.prevalence)
    document.criteria = judge(document, recipe.criteria, out)
    for row in document.criteria:
        row.beforehand = not measured_before or _identify(row) in before
        row.text += "" if row.beforehand else " (this criterion was written after the figures were known)"
    answers = [
        verdict.Answer(row.name, row.met, row.text, "MET", "NOT MET", measured=row.result.value is not None)
        for row in document.criteria
    ]
    document.verdict = verdict.judge(document, answers)
    for row in document.criteria:
        row.met = row.met if document.verdict.sound or not row.met else None  # nothing is met by what is not sound


def _identify(row: CriterionResult) -> tuple[object, ...]:
    return row.name, row.figure, row.by, row.not_worse_than, row.margin, row.side, row.bound


def judge(document: AuditDocument, criteria: Sequence[Criterion], out: Path) -> list[CriterionResult]:
    """Return the result of each criterion; `out` is the folder of the audit, for comparison with other audits."""
    content = document.model_dump(mode="json", by_alias=True)
    return [_judge_one(document, content, one, out) for one in criteria]


def count_needed(n: int, value: float, interval: tuple[float, float], bound: float, power: float = POWER) -> int | None:
    """Return how many images settle a criterion with a chance of `power`, if the true value is `value`.

    The interval shrinks with the square root of the number of images. Its side towards the bound must be shorter than
    the distance to the bound, by as much as the next estimate varies. None if the value is at the bound.
    """
    if math.isclose(value, bound, abs_tol=1e-9):
        return None
    low, high = interval
    varies = (high - low) / 2 * stats.norm.ppf(power) / stats.norm.ppf((1 + LEVEL) / 2)
    side = value - low if value > bound else high - value
    return math.ceil(n * ((side + varies) / (value - bound)) ** 2)


def find_figures(at: Any, steps: Sequence[Step], path: str = "", n: int | None = None) -> Iterator[Figure]:
    """Yield every figure that the steps of a path lead to, from the dictionary of audit.json, or a part at `path`."""
    if isinstance(at, dict) and isinstance(at.get("n"), int):
        n = at["n"]
    if not steps:
        share = at if isinstance(at, dict) else {"value": at}
        yield Figure(path, Share.model_validate(share), n, counts=isinstance(at, int))
        return
    step, rest = steps[0], steps[1:]
    if isinstance(at, list) and isinstance(step, dict):
        for entry in (entry for entry in at if _matches(entry, step)):
            keys = [key for key in _ENTRY_KEYS if key in step or entry.get(key) not in (None, "", 0)]
            selector = ", ".join(f"{key}={entry.get(key)}" for key in keys)  # with the keys that tell it apart
            yield from find_figures(entry, rest, f"{path}[{selector}]", n)
    elif isinstance(at, dict) and isinstance(step, dict):
        for name in at:  # [*] of a mapping
            yield from find_figures(at[name], rest, f"{path}[{name}]", n)
    elif isinstance(at, dict) and isinstance(step, str) and at.get(step) is not None:
        is_name = path and not step.isidentifier() and all(isinstance(value, dict) for value in at.values())
        yield from find_figures(at[step], rest, f"{path}[{step}]" if is_name else f"{path}.{step}".lstrip("."), n)


def _matches(entry: Mapping[str, Any], selector: Selector) -> bool:
    for value, text in ((entry.get(key), text) for key, text in selector.items()):
        try:
            if not abs(float(text) - float(value)) < 1e-9:  # type: ignore[arg-type]  # None is a TypeError
                return False
        except (TypeError, ValueError):
            if str(value) != text:
                return False
    return True


def _judge_one(document: AuditDocument, content: Mapping[str, Any], one: Criterion, out: Path) -> CriterionResult:
    measured = [figure for figure in find_figures(content, one.steps) if figure.share.value is not None]
    if not measured:
        return _row(one, f"{one.figure} was not measured{_explain_missing(document, content, one)}")
    rows = [_judge_figure(document, one, figure, out) for figure in measured]

    def rank(row: CriterionResult) -> tuple[int, float]:
        """Rank by the answer, then by how far the estimate lies on the right side of the bound."""
        slack = (row.result.value or 0.0) - (row.bound or 0.0)
        return {False: 0, None: 1, True: 2}[row.met], -slack if row.side == "at_most" else slack

    decisive = min(rows, key=rank)
    if len(rows) > 1:
        text = f"{decisive.text}; it is the worst of {len(rows)} figures, and each of them must meet the bound"
        decisive = decisive.model_copy(update={"text": text})
    return decisive


def _explain_missing(document: AuditDocument, content: Mapping[str, Any], one: Criterion) -> str:
    if document.withdrawn and one.steps[0] in ("attacks", "operating_points", "predictive_values"):
        return f": withdrawn, since {document.withdrawn}"
    loose: list[Step] = [{} if isinstance(step, dict) else step for step in one.steps]
    names = [figure.path for figure in find_figures(content, loose) if figure.share.value is not None]
    near = suggest_nearest(one.figure, names) or (f"there is {', '.join(names[:3])}" if names else "")
    return f": {near.strip()}" if near else " by this audit"


def _judge_figure(document: AuditDocument, one: Criterion, figure: Figure, out: Path) -> CriterionResult:
    attacked = any(isinstance(step, dict) and step.get("attack", CLEAN) != CLEAN for step in one.steps)
    attacked = attacked and one.at_most is None  # an upper bound of a figure that must be high enough
    remark = "; under these attacks: a stronger one may leave less" if attacked else ""
    if one.not_worse_than is None:
        side, bound = ("at_least", one.at_least) if one.at_least is not None else ("at_most", one.at_most)
        return _compare(one, figure, side, float(bound or 0.0), "", remark)
    side, margin = "at_most" if figure.last in _LOWER_IS_BETTER else "at_least", float(one.margin or 0.0)
    if one.not_worse_than == criteria_file.CLAIM:
        claim = getattr(document.model.reported, criteria_file.CLAIMS[criteria_file.outline(one.figure)])
        if claim is None:
            return _row(one, "the model's makers claim no such figure")
        reason = f" (the makers' {_format(figure, claim)} less the margin)"
        return _compare(one, figure, side, claim - margin, reason, remark)
    folder = Path(one.not_worse_than)
    other = read_audit(folder / layout.AUDIT_FILE)
    others = find_figures(other.model_dump(mode="json", by_alias=True), one.steps)
    match = next((o for o in others if o.path == figure.path and o.share.value is not None), None)
    if match is None:
        return _row(one, f"{folder} has no figure {figure.path}")
    difference, how = _paired_difference(figure, [other, document], (folder, out)), "image by image"
    if difference is None:  # other images, or another protocol
        difference, how = _independent_difference(figure.share, match.share), "as of independent images"
    change = replace(figure, path=f"{figure.path} less that of {other.model.name}", share=difference)
    bound = margin if side == "at_most" else -margin
    return _compare(one, change, side, bound, f" (the margin; compared {how})", "")


def _paired_difference(figure: Figure, audits: list[AuditDocument], folders: tuple[Path, Path]) -> Share | None:
    """Return the second audit's accuracy less the first's over the same images; None if that has no row."""
    measure = f"{CLEAN} accuracy"
    if attack := re.fullmatch(r"attacks\[(.*)\]\.accuracy", figure.path):
        parts = dict(pair.split("=") for pair in attack[1].split(", "))
        name, epsilon = parts["attack"], float(parts["epsilon"])
        efforts = [row.effort.name for row in audits[1].attacks if row.attack == name and row.is_at(epsilon)]
        measure = f"{efforts[0] if name == WORST_CASE and efforts else name} accuracy @{epsilon:g}"
    elif figure.path != f"{CLEAN}.accuracy":
        return None
    with suppress(UserError):
        return {row.measure: row.difference for row in compare_documents(audits, folders).rows}.get(measure)
    return None


def _independent_difference(first: Share, second: Share) -> Share:
    """Return first less second with the interval of two independent figures."""
    one, other, ends = float(first.value or 0.0), float(second.value or 0.0), None
    if first.interval is not None and second.interval is not None:
        ends = difference_interval(one, first.interval, other, second.interval)
    return Share(value=one - other, ci=ends)


def _compare(one: Criterion, figure: Figure, side: str, bound: float, reason: str, remark: str) -> CriterionResult:
    """Compare a figure, or its whole interval, with a bound."""
    sign, value = (1.0 if side == "at_least" else -1.0), float(figure.share.value or 0.0)
    needed, met = None, bool(sign * (value - bound) >= 0)
    words = (
        f"{figure.path} is {_format_share(figure)}, {side.replace('_', ' ')} {_format(figure, bound)} is asked{reason}"
    )
    if one.by == "interval":
        if figure.share.interval is None:
            return _row(one, f"{words}, but it has no interval on these images", figure, side=side, bound=bound)
        low, high = figure.share.interval
        near, far = (low, high) if sign > 0 else (high, low)
        met = True if sign * (near - bound) >= 0 else False if sign * (far - bound) < 0 else None  # type: ignore[assignment]
        if met is None and figure.n:
            needed = count_needed(figure.n, value, (low, high), bound)
    if met is None:
        images = "these images" if figure.n is None else f"{figure.n:,} images"
        text = f"{words}; {images} do not settle it{_format_needed(needed)}"
    else:
        text = words + ("" if one.by == "interval" else ", by the estimate alone") + (remark if met else "")
    return _row(one, text, figure, side=side, bound=bound, met=met, images_needed=needed)


def _format_needed(needed: int | None) -> str:
    if needed is None:
        return ", and no number of images does if the true value is at the bound"
    digits = max(len(str(needed)) - 2, 0)
    rounded = math.ceil(needed / 10**digits) * 10**digits
    return f": about {rounded:,} such images would, with a chance of {POWER:.0%}, if the true value is this one"


def _format(figure: Figure, number: float) -> str:
    if figure.counts or figure.last in _NO_SHARES:
        return f"{number:.4g}"
    return f"{number:+.1%}" if " less that of " in figure.path else f"{number:.1%}"


def _format_share(figure: Figure) -> str:
    value, ends = float(figure.share.value or 0.0), figure.share.interval
    if ends is None:
        return _format(figure, value)
    return f"{_format(figure, value)} [{_format(figure, ends[0])}, {_format(figure, ends[1])}]"


def _row(one: Criterion, text: str, figure: Figure | None = None, **result: Any) -> CriterionResult:
    figure = figure or Figure(one.figure, Share(), None)
    return CriterionResult(
        **one.model_dump(include={"name", "by", "margin"}),
        figure=figure.path,
        not_worse_than=Path(one.not_worse_than).name if one.not_worse_than else "",
        result=figure.share,
        n=figure.n,
        text=text,
        **({"side": "", "bound": None, "met": None, "images_needed": None} | result),
    )
