"""Define and read the base of every document: numbers, figures with their 95 % intervals, documents of them."""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from trustcxr.errors import UserError
from trustcxr.storage import atomic
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2  # of the documents' shape: raised if a field changes its name or meaning


def _finite(value: float | None) -> float | None:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return value if value is not None and math.isfinite(value) else None


Number = Annotated[float | None, AfterValidator(_finite)]


class Document(BaseModel):
    """A document or a part of one. Every field may be missing."""

    model_config = ConfigDict(validate_by_name=True)

    def plain(self) -> dict[str, Any]:
        """Return the document as on disk: numbers, text, lists and mappings, without fields never set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Result(Document):
    """A document that shows itself as a table in a notebook. `folder`: where a command wrote its tables."""

    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path | None:
        """The folder of the results; None if they were not kept."""
        return self._folder

    def table(self) -> "pd.DataFrame":
        """Return the figures as a table, a row for each condition; shares and interval ends are in [0, 1]."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return what to know before the table, in one sentence; empty if there is nothing."""
        return ""

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.summary(), self.table().to_string(index=False), NOTICE)))

    def _repr_html_(self) -> str:
        table = self.table().dropna(axis="columns", how="all").convert_dtypes().astype(object)
        shown = table.where(table.notna(), "").to_html(index=False, float_format="{:.3f}".format)
        return "".join(f"<p>{escape(text)}</p>" for text in [self.summary()] if text) + f"{shown}<p>{NOTICE}</p>"


class Share(Document):
    """A figure and its 95 % interval: `{"value": 0.84, "ci": [0.81, 0.87]}`."""

    value: Number = None
    ci: tuple[Number, Number] | None = None

    def columns(self, name: str = "accuracy") -> dict[str, float | None]:
        """Return the figure, by its name, and the ends of its interval, as columns of a table."""
        low, high = self.ci or (None, None)
        return {name: self.value, "low": low, "high": high}

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None if either is missing."""
        low, high = self.ci or (None, None)
        return None if low is None or high is None else (low, high)


class Figure(Share):
    """A saliency measure and its baselines.

    These are chance, maps that do not depend on the model, the layer's activation, and the network with random weights.
    """

    chance: Number = None
    centre: Number = None
    lung: Number = None
    brightness: Number = None
    edges: Number = None
    mean_mask: Number = None
    noise: Number = None
    activation: Number = None
    randomised: Number = None

    @property
    def against_chance(self) -> str:
        """Return whether the interval is `above`, `below` or `around` chance; empty if a number is missing."""
        if self.interval is None or self.chance is None:
            return ""
        low, high = self.interval
        return "above" if low > self.chance else "below" if high < self.chance else "around"


class Measured(Document):
    """A document with its own fields and saliency measures of any name: `{"n": 120, "infection_energy": {...}}`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Figure] = Field(init=False)

    @property
    def figures(self) -> dict[str, Figure]:
        """All measures by name."""
        return self.__pydantic_extra__

    def figure(self, name: str) -> Figure:
        """Return one measure; an empty figure if it was not measured."""
        return self.figures.get(name) or Figure()

    def with_figures(self, figures: Mapping[str, Figure]) -> Self:
        """Add measures, and return the document."""
        self.figures.update(figures)
        return self


_D = TypeVar("_D", bound=Document)


def read_schema(kind: type[_D], path: Path) -> _D:
    """Read a document from its file. Raises UserError if it is missing, damaged or of another version."""
    return parse(kind, atomic.read_document(path), path)


def parse(kind: type[_D], content: dict[str, Any], path: Path) -> _D:
    """Validate the content of a document's file, as `read_schema`."""
    check_version(content, path)
    try:
        return kind.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: damaged: {field}: {first['msg']}; {atomic.REMAKE}") from None


def check_version(content: dict[str, Any], path: Path) -> None:
    """Raise UserError if a document has another version."""
    version = content.get("version", VERSION)
    if version != VERSION:
        raise UserError(
            f"{path}: it has version {version!r} of the documents' shape, and this TrustCXR reads version {VERSION}. "
            "Run the command that wrote it again, into a new folder."
        )


def read_if_there(kind: type[_D], path: Path) -> _D | None:
    """Read a document from its file. Returns None if it is missing."""
    return read_schema(kind, path) if path.is_file() else None
