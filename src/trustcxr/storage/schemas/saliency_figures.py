"""Define the measures of saliency maps and the lesion effect."""

from pydantic import Field

from trustcxr.storage.schemas.document import Document, Measured, Number, Share


class Measures(Measured):
    """Measures of one saliency method on some of the images; `n` of them."""

    n: int | None = None


class Stratum(Measures):
    """Images by how much of the lungs the lesion covers, from `start` to `end`."""

    stratum: str = ""
    start: Number = Field(None, alias="from")
    end: Number = Field(None, alias="to")


class Change(Measures):
    """Similarity of the maps of the clean and the changed image."""

    condition: str = ""
    kind: str = ""
    epsilon: Number = None
    severity: int | None = None


class Stage(Measures):
    """Similarity to the trained model's map if the network is random from the logits down to this part."""

    part: str = ""


class Perturbed(Measures):
    """The measures on perturbed images."""

    attack: str = ""
    epsilon: Number = None


class Lead(Document):
    """The difference of a map and a baseline map, or the closest of several, on the same images by one measure."""

    measure: str = ""
    baseline: str = ""
    difference: Share = Share()


class RandomWeights(Document):
    """The method on `draws` networks with random weights (lung gates stay trained), on `n` images."""

    n: int | None = None
    draws: int | None = None
    leads: list[Lead] = []


class SaliencyDocument(Measures):
    """One saliency method against the masks; its own figures are of the clean images.

    `over_baselines`: lead over each baseline map; `beyond`: over the closest. `cells`: rows and columns of a CAM,
    "2 x 2"; `withheld`: why the hit rate, or every figure of a map of one cell, is null. `shows`: measures by which the
    map is above its baseline maps and random weights; `verdict`: that in a sentence. `void`: measures that a map of
    random weights reaches too; `survives`: that in words.
    """

    target: str = ""
    cells: str = ""
    withheld: str = ""
    shows: list[str] | None = None
    verdict: str = ""
    survives: str = ""
    void: list[str] = []
    random_weights: RandomWeights | None = None
    condition: str = ""
    without_mask: int | None = None
    threshold: Number = None
    beyond: list[Lead] = []
    over_baselines: list[Lead] = []
    correct: Measures = Measures()
    by_lesion: list[Stratum] = []
    stability: list[Change] = []
    faithfulness: Measures | None = None
    sanity: list[Stage] = []
    perturbed: Perturbed | None = None


class LesionSize(Document):
    """The lesion effect if the lesion covers more than `above`, and at most `up_to`, of the lungs."""

    above: Number = None
    up_to: Number = None
    images: int | None = None
    effect: Number = None
    low: Number = None
    high: Number = None


class LesionsWithoutControl(Document):
    """Images of which less than a tenth of the lesion has a congruent counterpart: the whole lesion removed.

    `fall`: `before` less `whole`. It includes the effect of the edit itself, which no control shows.
    """

    images: int | None = None
    before: Number = None
    whole: Number = None
    fall: Share = Share()
    flipped: Share = Share()


class LesionDocument(Document):
    """The probability of the image's class with and without its lesion, by one fill and control.

    `before`: unchanged; `without`: the part of the lesion with a congruent counterpart removed, `share` of it;
    `control_answer`: the counterpart removed instead; `whole`: all of the lesion removed. `fall`: `before` less
    `without`; `effect`: `control_answer` less `without`; `least`: the smaller of both, which is reported.

    Of the control "healthy image" `control_before` and `control_answer` are the healthy image's, for its own class, and
    `effect` is `fall` less theirs. Of the fill transplant: a healthy image before, with another's lesion, and with a
    healthy patch instead; `effect`: `without` less `control_answer`. `condition`: clean, or the attack at `epsilon` on
    the image.
    """

    condition: str = "clean"
    epsilon: Number = None
    fill: str = ""
    control: str = ""
    before: Number = None
    without: Number = None
    control_before: Number = None
    control_answer: Number = None
    whole: Number = None
    share: Number = None
    effect: Share = Share()
    fall: Share = Share()
    least: Share = Share()
    flipped: Share = Share()
    flipped_control: Number = None
    images: int | None = None
    left_out: int | None = None
    without_control: LesionsWithoutControl | None = None
    by_size: list[LesionSize] = []
