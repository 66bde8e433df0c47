"""A model that was given: what stands of it in audit.json, and in the metrics.json of a model file."""

from trustcxr.results.flat import Document, Number


class Reported(Document):
    """What its makers say of a model; of a run the recipe says it."""

    clean: Number = None
    attacked: Number = None
    threat_model: str = ""
    training_data: str = ""
    paper: str = ""


class AuditedModel(Document):
    """What was given: its kind, its file and checksum, whether its gradients are its own, what is worth saying."""

    name: str = ""
    kind: str = ""
    path: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    gradients: str = ""
    notes: list[str] = []
    reported: Reported = Reported()
