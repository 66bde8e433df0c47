"""Every name that a recipe, a table or a figure may use."""

from typing import Any

BLACK_BOX = ("transfer", "square")  # they use no gradient of the model
# What is left to a model that must do without the disease, or without the rest (Maguolo and Nanni 2021).
VIEWS = ("lungs_blacked_out", "lungs_only", "silhouette_only", "border_only", "lungs_on_another_film")
ONE_STEP = ("fgsm", "fgsm-rs")  # attacks without a number of steps


ATTACKED, CONTROL = "fgsm", "random"
# Beside every figure of a map against masks: what maps have that look at no model, by their name in tables.
REFERENCES = {
    "chance": "chance",
    "centre": "centre prior",
    "lung": "lung mask",
    "brightness": "brightness in the lungs",
    "edges": "edges in the lungs",
}


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


# Okabe and Ito's colours, darkened where they were too pale on white. Shape or dash says the same as colour.
DEFENCE_COLOURS = {
    "standard": "#4b5563",
    "fgsm": "#0072b2",
    "fgsm-rs": "#2a9fd6",
    "free": "#b5548d",
    "pgd": "#c44e00",
    "trades": "#00805c",
    "ibp": "#8c2d5a",
    "crown-ibp": "#3b6ea5",
    "mixup": "#a87400",
    "cutout": "#6d5a14",
    "gaussian": "#6f4aa8",
}
ATTACK_STYLES: dict[str, tuple[str, str, Any]] = {
    "fgsm": ("#b26a00", "s", (0, (4, 2))),
    "pgd": ("#b3261e", "^", "solid"),
    "worst-case": ("#6b1a2a", "D", "solid"),
    "square": ("#2b6777", "s", (0, (1, 1.2))),
    "transfer": ("#567a2c", "^", (0, (1, 1.2))),
}
CERTIFIED_COLOUR = "#1f6f43"  # of what is proved
DEFENCE_ORDER = (
    "standard",
    "fgsm",
    "fgsm-rs",
    "free",
    "pgd",
    "trades",
    "ibp",
    "crown-ibp",
    "mixup",
    "cutout",
    "gaussian",
)
_ATTACKS = {
    "fgsm": "FGSM",
    "fgsm-rs": "FGSM-RS",
    "pgd": "PGD",
    "pgd-l2": "PGD (L2)",
    "momentum": "momentum",
    "apgd-ce": "APGD-CE",
    "apgd-margin": "APGD-margin",
    "fab": "FAB",
    "square": "Square",
    "worst-case": "worst case",
}
_CORRUPTIONS = {"gaussian_noise": "Gaussian noise", "poisson_noise": "Poisson noise", "jpeg": "JPEG"}
_METHODS = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "layercam-smooth": "LayerCAM, smoothed",
    "activation": "activation (control)",
    "activation-smooth": "activation, smoothed (control)",
    "evidence": "evidence, summed to the answer",
    "integrated-gradients": "integrated gradients",
    "smoothgrad": "SmoothGrad",
    "occlusion": "occlusion",
    "random": "random map (control)",
    "centre": "centre prior (control)",
}
_MEASURES = {
    "infection_iou": "infection IoU",
    "infection_iou_tuned": "infection IoU, tuned threshold",
    "infection_iou_area": "infection IoU at the mask’s area",
    "infection_auroc": "infection AUROC",
    "infection_ap": "infection average precision",
    "stability_ssim": "stability (SSIM)",
    "corruption_ssim": "stability under corruptions (SSIM)",
    "artefact_ssim": "stability under artefacts (SSIM)",
    "artefact_gain": "saliency moved onto artefacts",
    "road": "ROAD",
    "ece": "calibration error",
}
