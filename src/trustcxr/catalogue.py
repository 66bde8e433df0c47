"""Every name that a recipe, a table or a figure may use."""

BLACK_BOX = ("transfer", "square")  # they use no gradient of the model
# What is left to a model that must do without the disease, or without the rest (Maguolo and Nanni 2021).
VIEWS = ("lungs_blacked_out", "lungs_only", "silhouette_only", "border_only", "lungs_on_another_film")
ONE_STEP = ("fgsm", "fgsm-rs")  # attacks without a number of steps


ATTACKED, CONTROL = "fgsm", "random"


CONTROLS = (CONTROL, "centre", "activation", "activation-smooth")


# Methods that multiply a layer's activation by the gradient, and what has the activation of that layer alone.
_ACTIVATION_OF = dict.fromkeys(("gradcam", "gradcam++", "hirescam", "layercam"), "activation") | {
    "layercam-smooth": "activation-smooth"
}


AGAINST_MASKS = (
    "infection_energy",
    "infection_energy_given_lung",
    "pointing_hit_rate",
    "infection_iou",
    "infection_iou_tuned",
    "infection_iou_area",
    "infection_rank_accuracy",
    "infection_auroc",
    "infection_ap",
    "lung_energy",
)


HIGHER_IS_BETTER = (
    *AGAINST_MASKS,
    "stability_ssim",
    "corruption_ssim",
    "artefact_ssim",
    "insertion",
    "road",
)


LOWER_IS_BETTER = ("artefact_gain", "deletion")


# Without the lungs a model that reads them must fall; that is no matter of better or worse for a robust one.
_NEITHER = ("lungs_blacked_out", "border_only", "silhouette_only")


def control_of(method: str) -> str | None:
    """The control that has a CAM's own layer alone: activation@gate for layercam@gate; None for what is no CAM."""
    base, at, layer = method.partition("@")
    return _ACTIVATION_OF[base] + at + layer if base in _ACTIVATION_OF else None


def direction(measure: str) -> int:
    """1 where more of a measure is better, -1 where less is, 0 where neither can be said."""
    if measure.removesuffix(" accuracy") in _NEITHER:
        return 0
    return -1 if measure in LOWER_IS_BETTER else 1
