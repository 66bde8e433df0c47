"""What `trustcxr export` says: the file, and how near its answers are to the run's."""

from trustcxr.results.flat import Document, Number


class ExportDocument(Document):
    """A file that was written from a run; `largest` is the most by which a logit differs on `n` of the `films`.

    `opset` of ONNX alone; `gradients` are those that an audit of the file has: own, converted, or none, as `note` says.
    """

    run: str = ""
    format: str = ""
    file: str = ""
    model_file: str = ""
    opset: int | None = None
    size: int | None = None
    bytes: int | None = None
    sha256: str = ""
    films: str = ""
    n: int | None = None
    largest: Number = None
    allowed: Number = None
    gradients: str = ""
    note: str = ""
