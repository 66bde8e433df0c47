"""What a study and a run are: pydantic models read from YAML. The recipes that ship are in recipes/."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from trustcxr.errors import UserError, unknown
from trustcxr.evaluation_recipes import (
    ATTACK_OPTIONS,
    CORRUPTIONS,
    AttackName,
    AttackRecipe,
    CorruptionsRecipe,
    EvaluationRecipe,
    ExplanationRecipe,
)
from trustcxr.results.files import read_yaml
from trustcxr.training_recipes import (
    DEFENCE_OPTIONS,
    Augment,
    Background,
    DefenceRecipe,
    ModelRecipe,
    Strict,
    TrainingRecipe,
)

SHIPPED = Path(__file__).parent / "recipes"
Model = TypeVar("Model", bound=Strict)

__all__ = [  # from training_recipes and evaluation_recipes
    "ATTACK_OPTIONS",
    "CORRUPTIONS",
    "DEFENCE_OPTIONS",
    "AttackName",
    "AttackRecipe",
    "Augment",
    "CorruptionsRecipe",
    "DefenceRecipe",
    "EvaluationRecipe",
    "ExplanationRecipe",
    "ModelRecipe",
    "TrainingRecipe",
]


class Splits(Strict):
    """The names that the data set gives to the three splits."""

    train: str = "Train"
    val: str = "Val"
    test: str = "Test"


class DataRecipe(Strict):
    """How images reach the model."""

    size: int = Field(224, ge=16, le=2048, description="side of the square image in pixels")
    splits: Splits = Splits()
    labels: dict[str, str | None] = Field(
        default_factory=dict, description="the data set's label -> the class it is; null leaves it out"
    )
    resize: Literal["squeeze", "pad"] = Field(
        "squeeze", description="to a square: squeeze, as COVID-QU-Ex does, or pad"
    )
    layout: str = Field("auto", description="auto, list, covidqu, covidx or folders")
    columns: str | dict[str, str | int] | None = Field(
        None, description="of a list: covidx, nih, rsna, rsna-boxes, or our word -> the list's column (name or place)"
    )
    images: str | None = Field(None, description="of a list: the folder of its images; the list's own unless said")

    def reading(self) -> dict[str, Any]:
        """The options that `load_dataset` takes."""
        return {"size": self.size, "labels": self.labels, "resize": self.resize, **self.listing()}

    def listing(self) -> dict[str, Any]:
        """How the data set itself is understood: the options that `read_manifest` takes."""
        return {"layout": self.layout, "columns": self.columns, "images": self.images}


class Selection(Strict):
    """Which baselines go on to adversarial training; always chosen on the validation split."""

    count: int = Field(6, ge=1)
    by: Literal["accuracy", "f1_macro", "auroc_macro"] = "accuracy"


def _as_model(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class StudyRecipe(Strict):
    """A study: models, trained as usual; the best few trained again with each defence; all tested and explained."""

    name: str
    title: str = ""
    data: DataRecipe = DataRecipe()
    models: tuple[Annotated[ModelRecipe, BeforeValidator(_as_model)], ...] = Field(min_length=1)
    training: TrainingRecipe = TrainingRecipe()
    selection: Selection = Selection()
    defences: tuple[Annotated[DefenceRecipe, BeforeValidator(_as_model)], ...] = (DefenceRecipe(name="fgsm"),)
    evaluation: EvaluationRecipe = EvaluationRecipe()
    explanation: ExplanationRecipe = ExplanationRecipe()
    seeds: tuple[int, ...] = Field((0,), min_length=1)


class RunRecipe(Strict):
    """Everything that defines one trained model."""

    model: ModelRecipe
    defence: DefenceRecipe = DefenceRecipe()
    seed: int = 0
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()

    @property
    def name(self) -> str:
        """The name of the run's folder: <model>-<defence>-s<seed>, or <model>-<background>-<defence>-s<seed>."""
        return f"{self.model.name.lower()}-{_trained_how(self)}-s{self.seed}"

    @property
    def background(self) -> Background:
        """How much it sees outside the lungs in training."""
        return self.training.background

    def network_options(self) -> dict[str, Any]:
        """What `models.build` is told beside name, classes and weights."""
        return self.model.options() | ({"lung_gate": True} if self.gated else {})

    @property
    def gated(self) -> bool:
        """Whether a lung gate is part of the model."""
        return self.background.startswith("gate")

    @property
    def empties(self) -> bool:
        """Whether images with emptied lungs stand beside those it is trained on."""
        return self.background.endswith("emptied")

    @property
    def needs_lungs(self) -> bool:
        """Whether its training looks at lung masks."""
        return self.background != "full" or self.training.rrr > 0 or self.defence.epsilon_outside is not None

    @model_validator(mode="after")
    def _fits(self) -> "RunRecipe":
        if self.training.rrr and self.defence.name == "mixup":
            raise ValueError("rrr needs the lungs of one image, and mixup shows two at once")
        if self.defence.start_from == "standard" and self.defence.background is not None and self.gated:
            raise ValueError(
                "start_from: standard has no lung gate to start from; "
                f"set training.background: {self.background} for both"
            )
        if self.model.several and (self.defence.separate_batchnorm or self.defence.name == "free"):
            what = "separate_batchnorm" if self.defence.separate_batchnorm else "free"
            raise ValueError(f"networks side by side learn each on an attack of its own, which {what} cannot do")
        if self.defence.separate_batchnorm and self.model.normalisation != "batch":
            raise ValueError(f"separate_batchnorm needs normalisation: batch, not {self.model.normalisation}")
        if self.defence.background not in (None, self.training.background):
            raise ValueError(
                f"two backgrounds: defence.background {self.defence.background}, training.background "
                f"{self.training.background}; set training.background"
            )
        return self


def _trained_how(run: RunRecipe) -> str:
    """The defence, after the background where that is not the whole image."""
    return run.defence.name if run.background == "full" else f"{run.background}-{run.defence.name}"


def run_recipe(study: StudyRecipe, model: ModelRecipe, defence: DefenceRecipe, seed: int) -> RunRecipe:
    """The run of one model, defence and seed in a study: the most special training keys win."""
    merged = {**study.training.model_dump(), **model.training, **defence.training}
    if defence.background is not None:
        merged["background"] = defence.background
    training = validate(TrainingRecipe, merged, f"training of {model.name}, {defence.name}")
    content = {"model": model, "defence": defence, "seed": seed, "data": study.data, "training": training}
    return validate(RunRecipe, content, f"{model.name}, {defence.name}")


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.yaml"))


def load_study(recipe: str | Path) -> StudyRecipe:
    """The recipe of that name in the package, or the YAML file at that path."""
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{recipe}.yaml"
        if not path.is_file():
            error = unknown("recipe", recipe, shipped())
            raise UserError(f"{error}, or a path that ends in .yaml")
    return read(StudyRecipe, path)


def read(kind: type[Model], path: Path) -> Model:
    """A recipe from a YAML file; UserError, with file and key, where it cannot be read."""
    return validate(kind, read_yaml(path, what="recipe file"), str(path))


def validate(kind: type[Model], content: dict[str, Any], where: str) -> Model:
    """`content` as a recipe; UserError naming the first wrong key, and the nearest right one, otherwise."""
    try:
        recipe = kind.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            complaint = str(unknown("key", first["loc"][-1], _siblings(kind, first["loc"])))
            raise UserError(f"{where}: {complaint.replace(str(first['loc'][-1]), key, 1)}") from None
        if first["type"] == "value_error":  # ours, about several keys together
            raise UserError(f"{where}: " + (f"key '{key}': " if key else "") + str(first["ctx"]["error"])) from None
        more = f" (and {problem.error_count() - 1} more)" if problem.error_count() > 1 else ""
        raise UserError(f"{where}: key '{key}': {first['msg']}, not {first['input']!r}{more}") from None
    if isinstance(recipe, StudyRecipe):
        try:
            _check_study(recipe)
        except UserError as problem:
            raise UserError(f"{where}: {problem}") from None
    return recipe


def assign(content: dict[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """A copy of `content` with keys set as typed: "defence.beta=3", the value read as YAML.

    Raises UserError for a pair without a key or with a value that is not YAML. Whether it is a key, `validate` says.
    """
    result = copy.deepcopy(content)
    for pair in pairs:
        dotted, equals, text = pair.partition("=")
        *parents, last = dotted.split(".")
        if not equals or not all((*parents, last)):
            raise UserError(f"--set {pair}: write KEY=VALUE, such as defence.beta=3 or training.augment.flip=0.5")
        at = result
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise UserError(f"--set {pair}: '{parent}' holds a value, not keys")
        try:
            at[last] = yaml.safe_load(text)
        except yaml.YAMLError as problem:
            raise UserError(f"--set {pair}: not readable as YAML: {' '.join(str(problem).split())}") from None
    return result


def _check_study(recipe: StudyRecipe) -> None:
    """What the keys alone do not show: training keys of models and defences, and work that would be done twice."""
    trained_how: list[object] = []
    for model in recipe.models:
        trained_how = [_trained_how(run_recipe(recipe, model, d, 0)) for d in (DefenceRecipe(), *recipe.defences)]
    attacks = recipe.evaluation.attacks
    listed: dict[str, list[object]] = {
        "models": [model.name.lower() for model in recipe.models],
        "defences": trained_how,  # the baselines come first
        "seeds": list(recipe.seeds),
        "evaluation.attacks": [
            f"{a.name} at {epsilon:g}"
            + (f" with {a.effort} {'steps' if a.steps else 'queries'}" if a.effort > 1 else "")
            for a in attacks
            for epsilon in a.epsilons
        ],
    }
    for key, names in listed.items():
        if twice := [name for name in names if names.count(name) > 1]:
            hint = f"; the baselines are {twice[0]} already" if str(twice[0]).endswith("standard") else ""
            raise UserError(f"key '{key}': {twice[0]} is there twice{hint}")


def _siblings(kind: type[BaseModel], location: tuple[int | str, ...]) -> Iterator[str]:
    """The valid keys beside the wrong one at `location`."""
    at: Any = kind
    for part in location[:-1]:
        if isinstance(part, str) and part in at.model_fields:
            at = _model_in(at.model_fields[part].annotation) or at
    yield from at.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _model_in(part):
            return found
    return None
