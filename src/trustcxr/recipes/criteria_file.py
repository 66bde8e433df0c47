"""Parse acceptance criteria: the bounds that figures of an audit must reach, written before the audit."""

import re
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self, get_origin

from pydantic import Field, field_validator, model_validator

from trustcxr.errors import UserError, lookup, unknown
from trustcxr.recipes.parsing import Strict, model_in, validate, without_none
from trustcxr.recipes.protocol import ExamRecipe
from trustcxr.storage.atomic import read_yaml
from trustcxr.storage.layout import AUDIT_FILE
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, Document, Share

DRAFT = Path(__file__).with_name("criteria-draft.yaml")
CLAIM = "claim"  # the makers' own figure, in the model file
QUESTIONS = ("accurate", "robust", "stable", "lungs", "subgroups", "calibrated")  # rows of every audit's verdict
CLAIMS = {"clean.accuracy": "clean", "attacks[].accuracy": "attacked"}  # figures that makers claim, and the key of it
Selector = dict[str, str]  # key and value of the entries of a list; an empty one selects all
Step = str | Selector

# The parts of audit.json with figures, and for lists the keys that tell entries apart.
_PARTS = (
    *("clean", "attacks", "certified", "corruptions", "corruptions_mean", "shortcuts", "calibration"),
    *("operating_points", "predictive_values", "subgroups", "submitted"),
)
_KEYS = {
    "attacks": ("attack", "epsilon"),
    "certified": ("epsilon",),
    "corruptions": ("corruption", "severity"),
    "operating_points": ("finding", "attack", "epsilon"),
    "predictive_values": ("finding", "attack", "epsilon"),
    "subgroups": ("column",),
    "groups": ("name",),
    "submitted": ("by",),
}
_SETTINGS = ("epsilon", "steps", "severity", "threshold", "at_specificity", "prevalence", "count", "conditions")
_TOKEN = re.compile(r"(?:^|\.)([A-Za-z_]\w*)|\[([^\]]*)\]")
_PAIR = re.compile(r"\s*(\w+)\s*=\s*(.*?)\s*(?:,(?=\s*\w+\s*=)|$)")
Rate = Annotated[float, Field(gt=0, lt=1)]


def parse_figure(text: str) -> tuple[Step, ...]:
    """Return the steps of a figure's path; raise UserError if it is no path.

    >>> from trustcxr.recipes.criteria_file import parse_figure
    >>> parse_figure("attacks[attack=pgd, epsilon=0.02].accuracy")
    ('attacks', {'attack': 'pgd', 'epsilon': '0.02'}, 'accuracy')
    """
    tokens = list(_TOKEN.finditer(text.strip()))
    if not tokens or "".join(token[0] for token in tokens) != text.strip():
        raise UserError(f"figure '{text}': no path in audit.json. Write clean.accuracy, or clean.ece")
    return tuple(token[1] or _parse_selector(token[2].strip()) for token in tokens)


def _parse_selector(text: str) -> Step:
    if text in ("", "*"):
        return {}
    pairs = dict(_PAIR.findall(text)) if "=" in text else {}
    return pairs or text


def list_figures(kind: type[Document] = AuditDocument, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the path of each figure that an audit can have, and whether it has an interval."""
    for name, field in kind.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        annotation, inner = without_none(field.annotation), model_in(field.annotation)
        if (not prefix and name not in _PARTS) or annotation in (str, bool) or name in _SETTINGS:
            continue
        if inner is not None and issubclass(inner, Share):
            yield path, True
        elif annotation in (int, float):
            yield path, False
        elif inner is not None and issubclass(inner, Document):
            origin = get_origin(annotation)
            if origin is list and name not in _KEYS:
                continue
            selector = ", ".join(f"{key}=..." for key in _KEYS.get(name, ())) if origin is list else "NAME"
            yield from list_figures(inner, path if origin is None else f"{path}[{selector}]")


def outline(path: str) -> str:
    """Return a figure's path without what its brackets hold."""
    return re.sub(r"\[[^\]]*\]", "[]", path.replace(" ", ""))


def _check_path(text: str) -> tuple[str, bool]:
    """Return a valid figure and whether it has an interval; UserError with the nearest valid ones."""
    steps, figures = parse_figure(text), {outline(path): (path, has) for path, has in list_figures()}
    if outline(text) not in figures:
        near = get_close_matches(outline(text).lower(), figures, n=3, cutoff=0.5)
        names = " or ".join(figures[name][0] for name in near)
        hint = f"did you mean {names}?" if names else "docs/howto/criteria.md tells how to write one"
        raise UserError(f"no figure '{text}' in audit.json: {hint}")
    path, has = figures[outline(text)]
    for step, valid in zip(steps, parse_figure(path), strict=True):
        if isinstance(step, dict) and isinstance(valid, dict):
            for key in step.keys() - valid.keys():
                raise unknown(f"key of {text}", key, valid)
    return path, has


class Criterion(Strict):
    """A bound on a figure of audit.json: `at_least`, `at_most`, or not worse than a claim or another audit."""

    name: str = Field(min_length=1, description="the question that the row of the verdict answers")
    figure: str = Field(description="path of a figure of audit.json")
    at_least: float | None = None
    at_most: float | None = None
    not_worse_than: str | None = Field(None, description="claim (of the model file), or another audit's folder")
    margin: float | None = Field(None, ge=0, description="how much worse than that is accepted")
    by: Literal["interval", "estimate"] = Field("interval", description="the whole 95 % interval, or the estimate")

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the steps of the figure's path."""
        return parse_figure(self.figure)

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        if not name.isprintable() or name in QUESTIONS:
            raise ValueError(f"'{name}': choose another name; every audit answers {', '.join(QUESTIONS)} itself")
        return name

    @model_validator(mode="after")
    def _fits(self) -> Self:
        bounds = [key for key in ("at_least", "at_most", "not_worse_than") if getattr(self, key) is not None]
        if len(bounds) != 1:
            present = " and ".join(bounds) or "none of them"
            raise UserError(f"criterion '{self.name}': give one of at_least, at_most and not_worse_than, not {present}")
        if (self.margin is None) == (self.not_worse_than is not None):
            raise UserError(f"criterion '{self.name}': margin belongs to not_worse_than, which needs it (0 is valid)")
        _, has_interval = _check_path(self.figure)
        if not has_interval and self.by == "interval":
            raise UserError(f"criterion '{self.name}': {self.figure} has no interval. Write by: estimate")
        if self.not_worse_than == CLAIM and outline(self.figure) not in CLAIMS:
            raise UserError(f"criterion '{self.name}': makers claim {' and '.join(CLAIMS)} alone, not {self.figure}")
        return self


class CriteriaRecipe(Strict):
    """A file of acceptance criteria, and the prevalence of classes where the model is to be used."""

    criteria: tuple[Criterion, ...] = ()
    prevalence: dict[str, Rate] = Field({}, description="of a class or finding, for predictive values")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [one.name for one in self.criteria]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"two criteria have the name '{twice[0]}': give each its own")
        return self


def read_criteria(path: Path) -> CriteriaRecipe:
    """Read a file of criteria, its paths relative to its folder; UserError, with the nearest figure, if it is wrong."""
    advice = "trustcxr audit --init-criteria prints a draft"
    recipe = validate(CriteriaRecipe, read_yaml(path, what="file of criteria", advice=advice), str(path))
    if not recipe.criteria and not recipe.prevalence:
        raise UserError(f"{path}: holds no criterion. {advice}")
    return recipe.model_copy(update={"criteria": tuple(_find_audit(one, path) for one in recipe.criteria)})


def _find_audit(criterion: Criterion, path: Path) -> Criterion:
    """Replace the folder of another audit by its path from here."""
    if criterion.not_worse_than in (None, CLAIM):
        return criterion
    folder = path.parent / Path(str(criterion.not_worse_than)).expanduser()
    folder = folder.parent if folder.name == AUDIT_FILE else folder
    if not (folder / AUDIT_FILE).is_file():
        raise UserError(
            f"{path}: criterion '{criterion.name}': no {AUDIT_FILE} in {folder}. Give the folder of an audit, or "
            f"{CLAIM} for the makers' own figure"
        )
    return criterion.model_copy(update={"not_worse_than": str(folder)})


def check_criteria(
    recipe: CriteriaRecipe, exam: ExamRecipe, classes: tuple[str, ...], claims: dict[str, float | None]
) -> None:
    """Raise UserError if an audit by this protocol of this model cannot have a figure, before it is computed."""
    for name in recipe.prevalence:
        if name not in classes:
            raise UserError(f"prevalence: {unknown('class', name, classes)}")
    radii: dict[str, set[float]] = {CLEAN: set()}
    for attack in (*exam.attacks, *exam.without_gradients):
        radii.setdefault(attack.name, set()).update(attack.epsilons)
    for one in recipe.criteria:
        try:
            _check_steps(one.steps, recipe.prevalence, radii, classes)
        except UserError as problem:
            raise UserError(f"criterion '{one.name}': {problem}") from None
        key = CLAIMS.get(outline(one.figure), "")
        if one.not_worse_than == CLAIM and claims.get(key) is None:
            advice = f"Write reported: {{{key}: 0.97}}"
            raise UserError(f"criterion '{one.name}': the model file has no claim to compare with. {advice}")


def _check_steps(
    steps: tuple[Step, ...], prevalence: dict[str, float], radii: dict[str, set[float]], classes: tuple[str, ...]
) -> None:
    """Raise UserError for a class, attack or radius that the audit does not have, or a class without prevalence."""
    for before, step in pairwise(steps):
        keys = step if isinstance(step, dict) else {"finding": step} if before == "per_class" else {}
        if keys.get("finding", classes[0]) not in classes:
            raise unknown("class", keys["finding"], classes)
        attack, epsilon = keys.get("attack", CLEAN), keys.get("epsilon")
        valid = [f"{radius:g}" for radius in sorted(lookup(radii, "attack of the protocol", attack))]
        if epsilon is not None and attack != CLEAN:
            with suppress(ValueError):
                epsilon = f"{float(epsilon):g}"
            if epsilon not in valid:
                raise unknown(f"epsilon of {attack}", epsilon, valid)
    if steps[0] == "predictive_values":
        name = steps[1].get("finding", "") if isinstance(steps[1], dict) else steps[1]
        if not prevalence or (name and name not in prevalence):
            raise UserError(f"predictive values need a prevalence. Write prevalence: {{{name or classes[0]}: 0.05}}")
