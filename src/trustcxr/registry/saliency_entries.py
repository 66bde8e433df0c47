"""Methods of saliency, each with the control that it must be better than."""

from dataclasses import dataclass

from trustcxr.registry.base import by_name


@dataclass(frozen=True)
class Saliency:
    """One saliency method.

    `combine`: for a CAM, the function that makes a map of a layer's features and gradient, so that it can read any
    layer; with it alone, no `function` is needed. `control`: the method that shows that layer without the gradient, or
    what the answer is read from without the answer.
    Without `model` the map is the same for every model, and is itself a control. Without `gradients` it follows none.
    """

    name: str
    label: str
    paper: str
    function: str = ""
    combine: str | None = None
    control: str | None = None
    model: bool = True
    gradients: bool = True


SALIENCY = by_name(
    (
        Saliency(
            "gradcam", "Grad-CAM", "Selvaraju et al. 2017", "cam:grad_cam", "cam:_grad_cam_map", "activation"
        ),
        Saliency(
            "gradcam++", "Grad-CAM++", "Chattopadhay et al. 2018", "cam:grad_cam_plus_plus",
            "cam:_grad_cam_plus_plus_map", "activation",
        ),
        Saliency(
            "hirescam", "HiResCAM", "Draelos and Carin 2020", "cam:hires_cam", "cam:_hires_cam_map", "activation"
        ),
        Saliency("layercam", "LayerCAM", "Jiang et al. 2021", "cam:layer_cam", "cam:_layer_cam_map", "activation"),
        Saliency(
            "layercam-smooth", "LayerCAM, smoothed", "Jiang et al. 2021", "cam:smooth_layer_cam",
            "cam:_layer_cam_map", "activation-smooth",
        ),
        Saliency("activation", "activation (control)", "", "cam:activation_map", "cam:_activation_map"),
        Saliency(
            "activation-smooth", "activation, smoothed (control)", "", "cam:smooth_activation_map",
            "cam:_activation_map",
        ),
        Saliency(
            "evidence", "evidence, summed to the answer", "", "evidence:evidence_map", control="evidence-features"
        ),
        Saliency(
            "evidence-features", "what the evidence is read from (control)", "", "evidence:features_map",
            gradients=False,
        ),
        Saliency(
            "integrated-gradients",
            "integrated gradients",
            "Sundararajan et al. 2017",
            "attribution:integrated_gradients",
        ),
        Saliency("smoothgrad", "SmoothGrad", "Smilkov et al. 2017", "attribution:smooth_grad"),
        Saliency("occlusion", "occlusion", "Zeiler and Fergus 2014", "attribution:occlusion", gradients=False),
        Saliency("random", "random map (control)", "", "baselines:random_saliency", model=False, gradients=False),
        Saliency("centre", "centre prior (control)", "", "baselines:centre_saliency", model=False, gradients=False),
    )
)  # fmt: skip
CONTROL = "random"  # the map that is always there
CONTROLS = (CONTROL, "centre", *dict.fromkeys(s.control for s in SALIENCY.values() if s.control))


@dataclass(frozen=True)
class Method:
    """A saliency method, of an earlier layer where one is named: `layercam@gate`."""

    base: str
    layer: str | None = None

    @classmethod
    def parse(cls, name: str) -> "Method":
        """From how it is typed; the method in any letter case, the layer as the model names it."""
        base, at, layer = name.strip().partition("@")
        return cls(base.lower(), layer if at else None)

    def __str__(self) -> str:
        return self.base if self.layer is None else f"{self.base}@{self.layer}"

    @property
    def control(self) -> "Method | None":
        """What the method's own layer shows without the answer; None for what reads no layer."""
        entry = SALIENCY.get(self.base)
        return Method(entry.control, self.layer) if entry and entry.control else None

    @property
    def at_gate(self) -> bool:
        """Whether it reads the place of the lung gate, or a layer within."""
        return self.layer is not None and self.layer.split(".")[0] == "gate"

    @property
    def label(self) -> str:
        """As a table says it: LayerCAM, gate."""
        entry = SALIENCY.get(self.base)
        return (entry.label if entry else self.base) + ("" if self.layer is None else f" @ {self.layer}")


# Beside every figure of a map against masks: what maps have that know less, by their name in tables. The last two are
# of the network: what the map's own layer shows without the answer (of a CAM its activation without the gradient), and
# the method itself on the network with random weights, a lung gate as it is trained.
ACTIVATION, RANDOMISED = "activation", "randomised"
SHARP = "_as_sharp"  # after a reference's name: the same order of pixels with the values of the map beside it
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


def format_control(name: str) -> str:
    """What a map is held against, by its name in a lead."""
    bare = name.removesuffix(SHARP)
    said = REFERENCES.get(bare, bare)
    return said if bare == name else f"{said}, as sharp as the map"
