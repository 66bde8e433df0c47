"""Define the documents of the API, from which /openapi.json is generated, and the messages of the workers."""

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field

from trustcxr.version import NOTICE

Png = Annotated[str, Field(description="A PNG file in base64.")]
Share = Annotated[float, Field(ge=0, le=1)]


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str
    probability: Share


class Survived(BaseModel):
    """True if the answer survives an attack. This is no proof: a stronger attack may change it."""

    attack: str
    survives: bool


class OutOfDistribution(BaseModel):
    """Similarity to the training images of the run."""

    rarer_than: Share = Field(description="Share of validation images that are more similar.")
    accepted: Share = Field(description="Share of validation images that the threshold accepts.")
    validated: int = Field(description="Number of validation images.")


class Prediction(BaseModel):
    """The answer of a run for one image."""

    notice: str = NOTICE
    run: str
    predicted: str
    classes: list[ClassProbability] = Field(description="All classes, the most probable first.")
    calibrated: bool = Field(description="True if probabilities are calibrated on validation images.")
    calibration: str = Field(description="The same as text.")
    warnings: list[str] = Field(description="Every reason for doubt that was found, or could not be looked for.")
    ood: OutOfDistribution | None = Field(description="Null if not fitted for this run.")
    epsilon: float = Field(description="L-infinity radius of the attacks, for pixels in [0, 1].")
    survives: list[Survived]
    seconds: float = Field(description="Time to read and answer.")


class BaselineMap(BaseModel):
    """A baseline map, and its correlation with the map of the method."""

    label: str
    likeness: float | None = Field(description="Correlation, -1 to 1.")
    png: Png


class SaliencyMap(BaseModel):
    """The saliency map of one method for the predicted class."""

    method: str
    label: str
    cells: str = Field(description="Rows x columns of the map before enlargement; empty if it has every pixel.")
    verdict: str = Field(description="Result of this method on the run's test images; empty if not measured.")
    png: Png
    baselines: list[BaselineMap]


class SmallestPerturbation(BaseModel):
    """The smallest perturbation found that changes the answer: an upper bound of the true minimum."""

    epsilon: float = Field(description="Largest change of a pixel, in [0, 1].")
    grey_levels: float = Field(description="The same in grey levels of 255.")
    becomes: str
    probability: Share
    steps: int = Field(description="Steps of PGD at each radius below that of FAB.")
    image: Png
    difference: Png
    magnified: float = Field(description="Factor by which the difference is magnified.")


class Corrupted(BaseModel):
    """The image under a corruption."""

    name: str
    label: str
    about: str
    severity: int
    predicted: str
    probability: Share
    changed: bool
    png: Png


class SeenImage(Prediction):
    """A prediction with the image and its saliency maps."""

    width: int
    height: int
    size: int = Field(description="Side of the network's input in pixels.")
    image: Png
    network_image: Png
    maps: list[SaliencyMap]


class Changed(BaseModel):
    """The smallest perturbation found, corruptions, and the reasons for doubt that they give."""

    warnings: list[str]
    perturbation: SmallestPerturbation | None = Field(description="Null if none was found.")
    tried_up_to: float = Field(description="Largest epsilon tried.")
    corruptions: list[Corrupted]


class Examination(SeenImage, Changed):
    """Prediction, saliency maps, smallest perturbation and corruptions; `warnings` are of all of them."""


class ServedRun(BaseModel):
    """A run on this server."""

    name: str
    classes: list[str]
    size: int
    calibrated: bool


class Served(BaseModel):
    """The runs of this server, and its limits."""

    notice: str = NOTICE
    version: str
    runs: list[ServedRun]
    most_bytes: int
    token_needed: bool


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok", "starting"]
    workers: int


class Fault(BaseModel):
    """An error: a code for programs, a line for people."""

    code: str
    message: str


class Problem(BaseModel):
    """The body of every error response."""

    error: Fault


Kind = Literal["predict", "examine", "seen", "changed", "heatmap", "dicom", "refusal"]


class WorkItem(NamedTuple):
    """One image and its task; run: index in the list of runs. why: for "refusal", why the image is not answered."""

    kind: Kind
    data: bytes
    run: int = 0
    epsilon: float = 0.02
    method: str = "gradcam"
    anyway: bool = False
    why: str = ""


class Reply(NamedTuple):
    """A document, PNG or DICOM files; or an error with a code, whose message quotes nothing of the image.

    accession: accession number of a DICOM image that is not answered.
    """

    status: int
    body: bytes = b""
    media: str = "application/json"
    files: tuple[bytes, ...] = ()
    code: str = ""
    message: str = ""
    accession: str = ""
