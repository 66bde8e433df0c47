"""Define zoo/<name>.json: a trained model that comes with the package."""

from trustcxr.storage.schemas.document import Document, Share
from trustcxr.storage.schemas.run_document import Attacked

CERTIFIED = "certified"  # name of a figure that is proved


class ZooInput(Document):
    """The images that the model takes: its side, channels, range, and how an image becomes a square."""

    size: int = 224
    channels: int = 1
    range: tuple[float, float] = (0.0, 1.0)
    resize: str = "squeeze"


class ZooFigure(Attacked):
    """Accuracy on the audit's images: under an attack at `epsilon` in [0, 1], clean, or certified."""

    n: int | None = None
    accuracy: Share = Share()


class ZooAudit(Document):
    """The figures of the model's audit: by which protocol, on which images, with which version."""

    protocol: str | None = None
    data: str = ""
    split: str = ""
    fingerprint: str = ""
    n: int | None = None
    sound: bool | None = None
    trustcxr: str = ""
    figures: list[ZooFigure] = []

    def accuracy(self, attack: str, epsilon: float) -> Share:
        """Return the accuracy under an attack; empty if it was not measured."""
        rows = [row for row in self.figures if row.attack == attack and abs((row.epsilon or 0.0) - epsilon) < 1e-9]
        return rows[0].accuracy if rows else Share()


class ZooEntry(Document):
    """A trained model of the zoo.

    `sha256` and `bytes` are of its weights. `expected_logits`: the answers to
    `evaluation.trained_models.synthetic_images`, checked at load.
    """

    name: str = ""
    summary: str = ""
    architecture: str = ""
    parameters: int | None = None
    input: ZooInput = ZooInput()
    classes: list[str] = []
    training_data: str = ""
    recipe: dict[str, object] = {}
    licence: str = ""
    data_licence: str = ""
    not_for: list[str] = []
    sha256: str = ""
    bytes: int | None = None
    expected_logits: list[list[float]] = []
    audit: ZooAudit = ZooAudit()
