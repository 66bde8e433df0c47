"""What `trustcxr predict` says of one film."""

from trustcxr.results.flat import Document, Number


class FilmAnswer(Document):
    """The class of one film, how sure, and whether it survives epsilon; or why there is no answer.

    `calibrated`: whether the probabilities are scaled by a temperature. `survives`: by attack. `error`: the file cannot
    be read. `left_out`: it is no film. `dicom`: paths of the answer as DICOM objects; `no_dicom`: why there are none.
    """

    image: str = ""
    predicted: str = ""
    probabilities: dict[str, float] = {}
    calibrated: bool | None = None
    epsilon: Number = None
    survives: dict[str, bool] = {}
    run: str = ""
    heatmap: str | None = None
    dicom: list[str] = []
    no_dicom: str | None = None
    warnings: list[str] = []
    error: str | None = None
    left_out: str | None = None
