"""List the measures, with their direction, chance level and limits."""

from dataclasses import dataclass
from typing import Literal

from trustcxr.registry.base import by_name


@dataclass(frozen=True)
class Measure:
    """A measure of a saliency map; without a function, of predictions or of several maps.

    `better`: the better direction, or None. `function` takes maps (B, H, W) and masks of kind `mask`, both cut to the
    mask `within`. `chance`: score of an uninformative map: the mask's share of the area, a half, or as many random
    pixels. `tuned`: uses the threshold chosen on validation. `about`: description if there is no function; `beware`:
    what it does not mean.
    """

    name: str
    label: str
    better: Literal["higher", "lower"] | None = "higher"
    function: str | None = None
    mask: Literal["infection", "lung"] | None = None
    within: Literal["infection", "lung"] | None = None
    chance: Literal["share", "half", "pixels"] = "share"
    tuned: bool = False
    compared: bool = True
    charted: bool = False
    paper: str = ""
    about: str = ""
    beware: str = ""


_MASKS = "A map on the disease is no proof that the network answers by it: compare it with the baseline maps."
_FEW = "A wide map has little, however well it lies; compare with chance and with the centre prior."
_WITHOUT_LUNGS = "Accuracy on images whose lungs are hidden so."
_HIDDEN = "What is left is answered by something that is no lung; the fill and the outline can tell the class too."
_OUTLINE = "It asks for the outline of the disease, which a classifier need not know."
_CONSTANT = "A map that is always the same is perfectly stable."
_BLURRED = "Images half blurred are like none that the network was trained on."
MEASURES = by_name(
    Measure(
        "infection_energy", "infection energy", "higher", "measures:energy_inside", "infection", charted=True,
        paper="Wang et al. 2020", beware=_FEW,
    ),
    Measure(
        "infection_energy_given_lung", "infection energy given lung", "higher", "measures:energy_inside", "infection",
        "lung", charted=True, paper="Wang et al. 2020",
        beware="A map that lies outside the lungs altogether can do well here: read it with lung energy.",
    ),
    Measure(
        "pointing_hit_rate", "pointing hit rate", "higher", "measures:pointing_hit", "infection", charted=True,
        paper="Zhang et al. 2018", beware="Of a map of few cells it says nothing, and one bright pixel decides it.",
    ),
    Measure(
        "infection_iou", "infection IoU", "higher", "measures:iou_otsu", "infection", chance="pixels",
        paper="Otsu 1979", beware=_OUTLINE,
    ),
    Measure(
        "infection_iou_tuned", "infection IoU, tuned threshold", "higher", "measures:iou", "infection", chance="pixels",
        tuned=True, paper="Saporta et al. 2022", beware=_OUTLINE,
    ),
    Measure(
        "infection_iou_area", "infection IoU at the mask’s area", "higher", "measures:iou_at_mask_area", "infection",
        chance="pixels", charted=True, beware=_OUTLINE,
    ),
    Measure(
        "infection_rank_accuracy", "infection rank accuracy", "higher", "measures:rank_accuracy", "infection",
        paper="Arras et al. 2022", beware=_MASKS,
    ),
    Measure(
        "infection_auroc", "infection AUROC", "higher", "measures:pixel_auroc", "infection", chance="half",
        charted=True, beware="Most pixels lie outside: a map of the lungs alone does very well.",
    ),
    Measure(
        "infection_ap", "infection average precision", "higher", "measures:average_precision", "infection",
        beware=_MASKS,
    ),
    Measure(
        "lung_energy", "lung energy", "higher", "measures:energy_inside", "lung", charted=True,
        beware="Behind a lung gate it is high by construction.",
    ),
    Measure(
        "stability_ssim", "stability (SSIM)", charted=True, paper="Wang et al. 2004",
        about="How alike the maps of an image and of its perturbed version are.", beware=_CONSTANT,
    ),
    Measure(
        "corruption_ssim", "stability under corruptions (SSIM)", charted=True,
        about="How alike the maps of an image and of its corrupted version are.", beware=_CONSTANT,
    ),
    Measure(
        "artefact_ssim", "stability under artefacts (SSIM)",
        about="How alike the maps of an image without and with a drawn artefact are.", beware=_CONSTANT,
    ),
    Measure(
        "artefact_gain", "saliency moved onto artefacts", "lower", charted=True,
        about="How much saliency moves onto an artefact that is drawn on the image.",
        beware="Little says that the map does not move, not that the answer does not.",
    ),
    Measure(
        "insertion", "insertion", charted=True, paper="Petsiuk et al. 2018",
        about="How fast the class comes back as the most salient pixels are put into a blurred image.", beware=_BLURRED,
    ),
    Measure(
        "deletion", "deletion (blurred)", "lower", charted=True, paper="Petsiuk et al. 2018",
        about="How fast the class goes as the most salient pixels are blurred; the paper sets them to a constant.",
        beware=_BLURRED,
    ),
    Measure(
        "road", "ROAD", charted=True, paper="Rong et al. 2022",
        about="How much more the answer falls without the most salient pixels than without the least salient ones.",
        beware="It is about the network, and not about the disease.",
    ),
    Measure(
        "ranked_by_cause", "ranks regions by cause", compared=False,
        about="Rank correlation, over cells of the lungs, of the map with what filling each does to the answer.",
        beware="It is about the network: a map can rank its reasons well, and these be no disease.",
    ),
    Measure(
        "pointing_ceiling", "hit rate that its cells allow", "higher", compared=False,
        about="The hit rate of an oracle that picks the best of the map’s cells.",
        beware="It is of the masks and the cells, and of no network.",
    ),
    Measure(
        "random_network_ssim", "SSIM with the map of random weights", "lower", compared=False,
        about="How alike the map is to that of the same network with random weights.",
        beware="Unlike maps may both lie on bright pixels.",
    ),
    Measure(
        "ece", "calibration error", "lower", compared=False,
        about="How far the stated probabilities are from the share of right answers, without chance.",
        beware="A calibrated network can be wrong, and under attack it is another figure.",
    ),
    # A model that reads the lungs must fall without them, so neither direction is better.
    *(
        Measure(name, label, None, compared=False, about=_WITHOUT_LUNGS, beware=_HIDDEN)
        for name, label in (
            ("lungs_blacked_out", "lungs blacked out"), ("lungs_in_grey", "lungs hidden in mid-grey"),
            ("lungs_in_mean", "lungs hidden in the image’s mean"),
            ("box_blacked_out", "box of the lungs blacked out"), ("box_in_grey", "box of the lungs in mid-grey"),
            ("box_in_mean", "box of the lungs in the image’s mean"),
        )
    ),
    Measure(
        "lungs_only_on_grey", "lungs only, on mid-grey", "higher", compared=False,
        about="Accuracy on the lungs alone, grey around them.",
        beware="Images like none in training: a fall is not proof that the lungs are not read.",
    ),
    Measure(
        "border_only", "border only", None, compared=False, about="Accuracy on the border of the image alone.",
        beware=_HIDDEN,
    ),
    Measure(
        "silhouette_only", "silhouette only", None, compared=False, about="Accuracy on the outline of the lungs alone.",
        beware=_HIDDEN,
    ),
)  # fmt: skip
HIT_RATE = "pointing_hit_rate"  # withheld if the map has too few cells to hit
ONE_CELL = "1 x 1"  # cells of a constant map, which has no figures
NO_MAP = "no map: what is read has one cell, so that it is the same everywhere; an earlier layer has more"
NULL_MAPS = "null_map_rate"  # share of constant maps: the only figure of a map of one cell
# A map shows something by these measures, in this order.
HEADLINE_MEASURES = (HIT_RATE, "infection_energy", "infection_energy_given_lung")
AGAINST_MASKS = tuple(m.name for m in MEASURES.values() if m.function)
HIGHER_IS_BETTER = tuple(m.name for m in MEASURES.values() if m.compared and m.better == "higher")
LOWER_IS_BETTER = tuple(m.name for m in MEASURES.values() if m.compared and m.better == "lower")


def direction(measure: str) -> int:
    """Return 1 if more of a measure is better, -1 if less is, 0 if neither."""
    entry = MEASURES.get(measure) or MEASURES.get(measure.removesuffix(" accuracy"))
    return 1 if entry is None else {"higher": 1, "lower": -1, None: 0}[entry.better]
