"""Read model files: a few lines of YAML that describe an external model, its input and its output."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from trustcxr.recipes.parsing import Strict, validate
from trustcxr.storage.atomic import read_yaml

Kind = Literal["logits", "probabilities", "sigmoid"]
Resize = Literal["squeeze", "pad", "crop"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _listed(value: object) -> object:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of letters that can be printed: it stands in reports")
    return text


Words = Annotated[str, AfterValidator(_one_line)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_listed)]


class InputSpec(Strict):
    """The input of a model.

    An image x in [0, 1] becomes `low + x * (high - low)`, without mean and std. `mean` and `std` are of the image in
    [0, 1], one number or one a channel, and are scaled to `range`. With both, the range cancels out.
    """

    size: int = Field(224, ge=8, le=4096, description="side of the square image in pixels")
    channels: Literal[1, 3] = Field(1, description="1, or 3: the grey channel three times")
    range: tuple[float, float] = Field((0.0, 1.0), description="what black and white are")
    mean: Numbers | None = None
    std: Numbers | None = None
    resize: Resize = Field("squeeze", description="to a square: squeeze, pad with black, or crop the middle")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        low, high = self.range
        if low == high:
            raise ValueError(f"range [{low:g}, {high:g}]: two different numbers, what black and what white are")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) not in (1, self.channels):
                raise ValueError(f"{name} has {len(numbers)} numbers: give 1, or {self.channels}, one a channel")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self


class OutputSpec(Strict):
    """The output of a model: logits, probabilities that sum to 1, or one sigmoid a finding."""

    kind: Kind = "logits"
    classes: tuple[Words, ...] = Field(min_length=1, description="names, in the order of the outputs")
    thresholds: Numbers | None = Field(None, description="the operating point of each class or finding")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise ValueError(f"class '{twice[0]}' is there twice")
        if self.kind != "sigmoid" and len(self.classes) < 2:
            raise ValueError(f"kind {self.kind} needs two classes or more; one finding is of kind sigmoid")
        count = len(self.classes)
        if self.thresholds is not None and len(self.thresholds) not in (1, count):
            raise ValueError(f"{len(self.thresholds)} thresholds for {count} classes: give 1 or as many")
        if not all(0 < threshold < 1 for threshold in self.thresholds or ()):
            raise ValueError("thresholds are probabilities between 0 and 1")
        return self

    @property
    def operating_points(self) -> tuple[float, ...] | None:
        """Return the threshold of each finding, 0.5 by default; None if the highest class is the answer."""
        if self.kind != "sigmoid":
            return None
        points = self.thresholds or (0.5,)
        return points * len(self.classes) if len(points) == 1 else points


class Reported(Strict):
    """Claims of the makers of a model: shown next to the measured figures, without effect on them."""

    clean: float | None = Field(None, ge=0, le=1, description="accuracy on images as they are")
    attacked: float | None = Field(None, ge=0, le=1, description="accuracy under the strongest attack that they tried")
    threat_model: Words = Field("", description="what it is meant to withstand, such as L-infinity 0.02")
    training_data: Words = Field("", description="what it was trained on")
    paper: Words = Field("", description="where that is said")


class ModelFile(Strict):
    """A model file with one of `source`, `python`, `predictions`; `timm` names the network of weights."""

    source: str | None = Field(
        None, description=".onnx, .keras, .h5, .tflite, weights (.safetensors, .pth), .pt2 or TorchScript .pt"
    )
    timm: str | None = Field(None, description="of weights alone: the timm architecture they are of")
    python: str | None = Field(None, description="module:function that returns the model; it runs code")
    predictions: str | None = Field(None, description="a table of scores, .csv or .parquet; then nothing is attacked")
    name: Words | None = None
    input: InputSpec = InputSpec()
    output: OutputSpec
    reported: Reported = Reported()
    criteria: str | None = Field(None, description="file of acceptance criteria, see trustcxr audit --init-criteria")
    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path | None:
        """Return the folder of the model file; None if it was built in code."""
        return self._folder

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        keys = [key for key in ("source", "python", "predictions") if getattr(self, key)]
        if len(keys) != 1:
            raise ValueError(f"give one of source, python and predictions, not {' and '.join(keys) or 'none of them'}")
        if self.timm and not self.source:
            raise ValueError(f"timm names the network of a weight file: give the file as source, not {keys[0]}")
        if self.python and ":" not in self.python:
            raise ValueError(f"python '{self.python}': write module:function")
        return self


def read_model_file(path: Path) -> ModelFile:
    """Read a model file, with its paths relative to its folder; UserError, with file and key, if it is wrong."""
    declared = validate(ModelFile, read_yaml(path, what="model file"), str(path))
    moved = {
        key: str(path.parent / value)
        for key in ("source", "predictions", "criteria")
        if (value := getattr(declared, key)) and not Path(value).is_absolute()
    }
    declared = declared.model_copy(update=moved)
    declared._folder = path.parent
    return declared
