"""Define what is measured of saliency maps, and what becomes of the probability without the lesion."""

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
    """How like the map of the clean image that of the changed one is."""

    condition: str = ""
    kind: str = ""
    epsilon: Number = None
    severity: int | None = None


class Stage(Measures):
    """How like the trained model's map it is once the network is random from the logits down to this part."""

    part: str = ""


class Perturbed(Measures):
    """The measures on perturbed images."""

    attack: str = ""
    epsilon: Number = None


class Lead(Document):
    """What a map has over a control, of several the one that comes closest, on the same images, by one measure."""

    measure: str = ""
    control: str = ""
    difference: Share = Share()


class RandomWeights(Document):
    """The same method on the same network with random weights (a lung gate as it is trained).

    `draws` networks on `n` images; `leads`: what the map has over theirs, on the same images.
    """

    n: int | None = None
    draws: int | None = None
    leads: list[Lead] = []


class SaliencyDocument(Measures):
    """One saliency method against the masks: its own figures are those on the clean images.

    `over_controls`: what the map has over each control; `beyond`: over the one that comes closest.
    `cells`: rows and columns of a CAM, "2 x 2"; `withheld`: why the hit rate is null, or all figures are of
    a map of one cell. `shows`: the measures by which
    the map is above its other controls and above random weights; `verdict`: that in a sentence. `survives`: what is
    left of the map with random weights, where that voids it; `void`: the measures that it voids.
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
    over_controls: list[Lead] = []
    correct: Measures = Measures()
    by_lesion: list[Stratum] = []
    stability: list[Change] = []
    faithfulness: Measures | None = None
    sanity: list[Stage] = []
    perturbed: Perturbed | None = None


class LesionSize(Document):
    """The lesion effect where the lesion covers more than `above`, and at most `up_to`, of the lungs."""

    above: Number = None
    up_to: Number = None
    images: int | None = None
    effect: Number = None
    low: Number = None
    high: Number = None


class LesionDocument(Document):
    """What removing the lesion does to the probability of the image's class, by one fill and control.

    `before`: as it is; `without`: the part of the lesion with a congruent counterpart removed, `share` of it; `beside`:
    the counterpart removed instead; `whole`: all of the lesion removed. `effect` is `beside` less `without`. Of fill
    transplant: a healthy image before, with another's lesion, and with a healthy patch instead; `effect` is `without`
    less `beside`. `condition`: clean, or the attack at `epsilon` that the image was under before.
    """

    condition: str = "clean"
    epsilon: Number = None
    fill: str = ""
    control: str = ""
    before: Number = None
    without: Number = None
    beside: Number = None
    whole: Number = None
    share: Number = None
    effect: Share = Share()
    flipped: Share = Share()
    flipped_control: Number = None
    images: int | None = None
    left_out: int | None = None
    by_size: list[LesionSize] = []
