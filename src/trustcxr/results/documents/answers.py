"""What `trustcxr predict` says of one film, and `trustcxr familiarity` of all that a run knows."""

from trustcxr.results.flat import Document, Number, Share

UNWRITTEN = ("no heatmap: ", "no DICOM answer: ")  # so an error begins that the disk made


class FilmAnswer(Document):
    """The class of one film, how sure, and whether it survives epsilon; or why there is no answer.

    `calibrated`: whether the probabilities are scaled by a temperature. `survives`: by attack. `error`: the file cannot
    be read, or its heatmap or its DICOM objects cannot be written. `left_out`: it is no film. `dicom`: paths of the
    answer as DICOM objects; `no_dicom`: why there are none.
    `border`: in words, where two classes are nearly as likely. `rarer_than`: the share of the run's validation films
    that are more like its training films, where that was fitted.
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
    border: str | None = None
    rarer_than: Number = None
    error: str | None = None
    left_out: str | None = None

    @property
    def unwritten(self) -> bool:
        """Whether its error is not the film's: the disk refused what belongs to the answer."""
        return self.error is not None and self.error.startswith(UNWRITTEN)


class FamiliarityDocument(Document):
    """What a run's training films are like: the threshold that accepts `accepted` of the validation films.

    `false_alarms`: the share of the run's own test films that is called unlike. `trained`, `validated`, `tested`: how
    many films each is from.
    """

    run: str = ""
    accepted: Number = None
    threshold: Number = None
    false_alarms: Share = Share()
    trained: int | None = None
    validated: int | None = None
    tested: int | None = None
