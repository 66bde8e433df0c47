"""What follows from the figures of a run: whether its gradients fail, and what a reader must not miss."""

from trustcxr.results.flat import Document


class Sign(Document):
    """A sign that gradients fail, or that FGSM overstates, in a sentence."""

    kind: str = ""
    text: str = ""


class Verdict(Document):
    """Whether gradients are masked (None: not looked for), the signs, why, and for which signs was looked.

    `at_random`: the model draws random numbers when it answers, and attack and judge saw the same draw. Without
    `signs`: of another judge, of version 0.1.
    """

    masked: bool | None = None
    because: str = ""
    looked_for: list[str] = []
    signs: list[Sign] = []
    at_random: bool = False


class Alarm(Document):
    """What a reader must not miss."""

    run: str = ""
    kind: str = ""
    text: str = ""
