"""What the API says, as types: the schema of /openapi.json is made of these. Pictures are PNG files in base64."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from trustcxr.version import NOTICE

Png = Annotated[str, Field(description="A PNG file in base64.")]
Share = Annotated[float, Field(ge=0, le=1)]


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str
    probability: Share


class Survived(BaseModel):
    """Whether the answer stays under an attack: no proof, a stronger one may still change it."""

    attack: str
    survives: bool


class Familiar(BaseModel):
    """How like the images that the run was trained on."""

    rarer_than: Share = Field(description="The share of the run's validation images that are more like them.")
    accepted: Share = Field(description="The share of the validation images that the threshold accepts.")
    validated: int = Field(description="How many validation images that is from.")


class Prediction(BaseModel):
    """What a run says of one image."""

    notice: str = NOTICE
    run: str
    predicted: str
    classes: list[ClassProbability] = Field(description="Of every class of the run, the likeliest first.")
    calibrated: bool = Field(description="Whether probabilities are scaled by what the run's validation images said.")
    calibration: str = Field(description="The same in words.")
    warnings: list[str] = Field(description="What speaks against relying on the answer, in words.")
    familiarity: Familiar | None = Field(description="Null where it was not fitted for this run.")
    epsilon: float = Field(description="The radius of the attacks, in pixels of [0, 1].")
    survives: list[Survived]
    seconds: float = Field(description="What reading and answering took.")


class ControlMap(BaseModel):
    """What a map that knows less shows, and how like the method's own it is."""

    label: str
    likeness: float | None = Field(description="Correlation with the method's map, -1 to 1.")
    png: Png


class SaliencyMap(BaseModel):
    """Where a method sees the evidence for the predicted class."""

    method: str
    label: str
    cells: str = Field(description="Rows and columns of the map as the network makes it; empty where every pixel.")
    verdict: str = Field(description="What the run's own test images showed of this method; empty where not measured.")
    png: Png
    controls: list[ControlMap]


class SmallestPerturbation(BaseModel):
    """The smallest perturbation found that changes the answer: an upper bound of the smallest that there is."""

    epsilon: float = Field(description="The largest change of a pixel, in [0, 1].")
    grey_levels: float = Field(description="The same in grey levels of 255.")
    becomes: str
    probability: Share
    steps: int = Field(description="Of PGD, at each radius below what FAB found.")
    image: Png
    difference: Png
    magnified: float = Field(description="By how much the difference is magnified in the picture.")


class Corrupted(BaseModel):
    """The same image under a corruption."""

    name: str
    label: str
    about: str
    severity: int
    predicted: str
    probability: Share
    changed: bool
    png: Png


class SeenImage(Prediction):
    """The same, with the image and what the network sees in it: maps beside their controls."""

    width: int
    height: int
    size: int = Field(description="Side in pixels of the image as the network sees it.")
    image: Png
    network_image: Png
    maps: list[SaliencyMap]


class Changed(BaseModel):
    """The image as it is not: the smallest perturbation that was found, and corruptions."""

    perturbation: SmallestPerturbation | None = Field(description="Null where none was found.")
    tried_up_to: float = Field(description="The largest perturbation that was tried.")
    corruptions: list[Corrupted]


class Examination(Changed, SeenImage):
    """The same, with pictures: maps beside their controls, the smallest perturbation, corruptions."""


class ServedRun(BaseModel):
    """A run that answers here."""

    name: str
    classes: list[str]
    size: int
    calibrated: bool


class Served(BaseModel):
    """What answers here, and within which limits."""

    notice: str = NOTICE
    version: str
    runs: list[ServedRun]
    most_bytes: int
    token_needed: bool


class Health(BaseModel):
    """Whether the server can answer."""

    status: Literal["ok", "starting"]
    workers: int


class Fault(BaseModel):
    """What went wrong: a word for programs, a line for people."""

    code: str
    message: str


class Problem(BaseModel):
    """The body of every answer that is not one."""

    error: Fault
