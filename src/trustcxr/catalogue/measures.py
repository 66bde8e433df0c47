"""Measures of a saliency map, each with what is better of it and how a map that knows nothing scores."""

from dataclasses import dataclass
from typing import Literal

from trustcxr.catalogue.entries import by_name


@dataclass(frozen=True)
class Measure:
    """One measure of a saliency map (or, without a function, of predictions or of what several maps have in common).

    `better`: whether more or less of it is better, where either can be said. `function` takes maps (B, H, W) and masks
    of that kind, `within` the mask that both are cut to; `chance` is how a map that knows nothing scores: the mask's
    share of the area, a half, or as many random pixels. `tuned`: it takes the threshold that validation chose.
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


MEASURES = by_name(
    (
        Measure(
            "infection_energy", "infection energy", "higher", "measures:energy_inside", "infection", charted=True,
            paper="Wang et al. 2020",
        ),
        Measure(
            "infection_energy_given_lung", "infection energy given lung", "higher", "measures:energy_inside",
            "infection", "lung", charted=True, paper="Wang et al. 2020",
        ),
        Measure(
            "pointing_hit_rate", "pointing hit rate", "higher", "measures:pointing_hit", "infection", charted=True,
            paper="Zhang et al. 2018",
        ),
        Measure(
            "infection_iou", "infection IoU", "higher", "measures:iou_otsu", "infection", chance="pixels",
            paper="Otsu 1979",
        ),
        Measure(
            "infection_iou_tuned", "infection IoU, tuned threshold", "higher", "measures:iou", "infection",
            chance="pixels", tuned=True, paper="Saporta et al. 2022",
        ),
        Measure(
            "infection_iou_area", "infection IoU at the mask’s area", "higher", "measures:iou_at_mask_area",
            "infection", chance="pixels", charted=True,
        ),
        Measure(
            "infection_rank_accuracy", "infection rank accuracy", "higher", "measures:rank_accuracy", "infection",
            paper="Arras et al. 2022",
        ),
        Measure(
            "infection_auroc", "infection AUROC", "higher", "measures:pixel_auroc", "infection", chance="half",
            charted=True,
        ),
        Measure("infection_ap", "infection average precision", "higher", "measures:average_precision", "infection"),
        Measure("lung_energy", "lung energy", "higher", "measures:energy_inside", "lung", charted=True),
        Measure("stability_ssim", "stability (SSIM)", charted=True, paper="Wang et al. 2004"),
        Measure("corruption_ssim", "stability under corruptions (SSIM)", charted=True),
        Measure("artefact_ssim", "stability under artefacts (SSIM)"),
        Measure("artefact_gain", "saliency moved onto artefacts", "lower", charted=True),
        Measure("insertion", "insertion", charted=True, paper="Petsiuk et al. 2018"),
        Measure("deletion", "deletion (blurred)", "lower", charted=True, paper="Petsiuk et al. 2018"),
        Measure("road", "ROAD", charted=True, paper="Rong et al. 2022"),
        Measure("pointing_ceiling", "hit rate that its cells allow", "higher", compared=False),
        Measure("random_network_ssim", "SSIM with the map of random weights", "lower", compared=False),
        Measure("ece", "calibration error", "lower", compared=False),
        # Without the lungs a model that reads them must fall; that is no matter of better or worse for a robust one.
        Measure("lungs_blacked_out", "lungs blacked out", None, compared=False),
        Measure("lungs_in_grey", "lungs hidden in mid-grey", None, compared=False),
        Measure("lungs_in_mean", "lungs hidden in the film’s mean", None, compared=False),
        Measure("box_blacked_out", "box of the lungs blacked out", None, compared=False),
        Measure("box_in_grey", "box of the lungs in mid-grey", None, compared=False),
        Measure("box_in_mean", "box of the lungs in the film’s mean", None, compared=False),
        Measure("lungs_only_on_grey", "lungs only, on mid-grey", "higher", compared=False),
        Measure("border_only", "border only", None, compared=False),
        Measure("silhouette_only", "silhouette only", None, compared=False),
    )
)  # fmt: skip
HIT_RATE = "pointing_hit_rate"  # withheld of a map whose cells are too few to hit
# By these a map may be said to show something, in the order in which they are told.
TOLD_OF_MAPS = (HIT_RATE, "infection_energy", "infection_energy_given_lung")
AGAINST_MASKS = tuple(m.name for m in MEASURES.values() if m.function)
HIGHER_IS_BETTER = tuple(m.name for m in MEASURES.values() if m.compared and m.better == "higher")
LOWER_IS_BETTER = tuple(m.name for m in MEASURES.values() if m.compared and m.better == "lower")


def direction(measure: str) -> int:
    """1 where more of a measure is better, -1 where less is, 0 where neither can be said."""
    entry = MEASURES.get(measure) or MEASURES.get(measure.removesuffix(" accuracy"))
    return 1 if entry is None else {"higher": 1, "lower": -1, None: 0}[entry.better]
