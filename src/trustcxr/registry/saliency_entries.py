"""List the saliency methods, with the baseline that each must beat, and the baseline maps."""

from dataclasses import dataclass

from trustcxr.registry.base import by_name


@dataclass(frozen=True)
class Saliency:
    """A saliency method.

    `combine`: for a CAM, the function that combines any layer's features and gradient; it replaces `function`.
    `baseline`: the method that shows the same layer without the gradient. `model` False: the map is the same for every
    model, and is a baseline map. `gradients` False: it uses no gradient.
    """

    name: str
    label: str
    paper: str
    function: str = ""
    combine: str | None = None
    baseline: str | None = None
    model: bool = True
    gradients: bool = True


SALIENCY = by_name(
    Saliency("gradcam", "Grad-CAM", "Selvaraju et al. 2017", "cam:grad_cam", "cam:_grad_cam_map", "activation"),
    Saliency(
        "gradcam++", "Grad-CAM++", "Chattopadhay et al. 2018", "cam:grad_cam_plus_plus", "cam:_grad_cam_plus_plus_map",
        "activation",
    ),
    Saliency("hirescam", "HiResCAM", "Draelos and Carin 2020", "cam:hires_cam", "cam:_hires_cam_map", "activation"),
    Saliency("layercam", "LayerCAM", "Jiang et al. 2021", "cam:layer_cam", "cam:_layer_cam_map", "activation"),
    Saliency(
        "layercam-smooth", "LayerCAM, smoothed", "Jiang et al. 2021", "", "cam:_layer_cam_map",
        "activation-smooth",
    ),
    Saliency("activation", "activation (baseline)", "", "", "cam:_activation_map"),
    Saliency("activation-smooth", "activation, smoothed (baseline)", "", "", "cam:_activation_map"),
    Saliency("evidence", "evidence, summed to the answer", "", "cam:evidence_map", baseline="evidence-features"),
    Saliency(
        "evidence-features", "what the evidence is read from (baseline)", "", "cam:features_map", gradients=False,
    ),
    Saliency(
        "integrated-gradients", "integrated gradients", "Sundararajan et al. 2017", "attribution:integrated_gradients",
    ),
    Saliency("smoothgrad", "SmoothGrad", "Smilkov et al. 2017", "attribution:smooth_grad"),
    Saliency("occlusion", "occlusion", "Zeiler and Fergus 2014", "attribution:occlusion", gradients=False),
    Saliency("random", "random map (baseline)", "", "baselines:random_saliency", model=False, gradients=False),
    Saliency("centre", "centre prior (baseline)", "", "baselines:centre_saliency", model=False, gradients=False),
)  # fmt: skip
RANDOM_MAP = "random"  # needs no model
BASELINE_MAPS = (RANDOM_MAP, "centre", *dict.fromkeys(s.baseline for s in SALIENCY.values() if s.baseline))


@dataclass(frozen=True)
class Method:
    """A saliency method, with an earlier layer if one is named: `layercam@gate`."""

    base: str
    layer: str | None = None

    @classmethod
    def parse(cls, name: str) -> "Method":
        """Parse a typed name: the method in any letter case, the layer as the model names it."""
        base, at, layer = name.strip().partition("@")
        return cls(base.lower(), layer if at else None)

    def __str__(self) -> str:
        return self.base if self.layer is None else f"{self.base}@{self.layer}"

    @property
    def baseline(self) -> "Method | None":
        """Return the baseline for the same layer; None if the method reads no layer."""
        entry = SALIENCY.get(self.base)
        return Method(entry.baseline, self.layer) if entry and entry.baseline else None

    @property
    def at_gate(self) -> bool:
        """Tell whether it reads the lung gate or a layer inside it."""
        return self.layer is not None and self.layer.split(".")[0] == "gate"

    @property
    def label(self) -> str:
        """Format the name for a table: `LayerCAM, stage -2`, or `LayerCAM, gate`."""
        entry = SALIENCY.get(self.base)
        stage = "stage " if (self.layer or "").startswith("-") else ""
        return (entry.label if entry else self.base) + ("" if self.layer is None else f", {stage}{self.layer}")


# Baseline maps, with their labels in tables. The last two need the network: the map's layer without the gradient, and
# the method on random weights (a lung gate keeps its trained weights).
ACTIVATION, RANDOMISED = "activation", "randomised"
SHARP = "_as_sharp"  # suffix of a rank-matched baseline: its order of pixels, with the values of the map
REFERENCES = {
    "chance": "chance",
    "centre": "centre prior",
    "lung": "lung mask",
    "brightness": "brightness in the lungs",
    "edges": "edges in the lungs",
    "mean_mask": "mean training mask, in the lungs",
    "noise": "random map, same cells",
    ACTIVATION: "the layer’s activation",
    RANDOMISED: "random weights",
}


def format_baseline(name: str) -> str:
    """Return the label of a baseline map."""
    bare = name.removesuffix(SHARP)
    label = REFERENCES.get(bare, bare)
    return label if bare == name else f"{label}, as sharp as the map"
