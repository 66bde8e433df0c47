"""Every name that a recipe, a table or a figure may use, once: what it is called, who described it, what it takes.

An attack, a defence, a corruption, a layout, a saliency method or a measure is a function, its entry here, its test.
Nothing here imports torch: `function` says where the function is, as "module:name" in its own wing, or with the whole
path of the module where it stands in another package.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, TypeVar

Style = tuple[str, str, Any]  # colour, marker, dash of a line


class Named(Protocol):
    """What every entry has."""

    @property
    def name(self) -> str:
        """How recipes, commands and files on disk say it."""
        ...


Entry = TypeVar("Entry", bound=Named)


def _by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


def function_of(wing: str, where: str) -> Callable[..., Any]:
    """The function at "module:name" of a wing, such as ("attacks", "pgd:pgd_l2"); or at "package.module:name"."""
    module, _, name = where.partition(":")
    path = module if "." in module else f"trustcxr.{wing}.{module}"
    return getattr(import_module(path), name)


# --- attacks ---


@dataclass(frozen=True)
class Attack:
    """One attack. `options`: what a recipe may say of it, and what that is unless said.

    `steps` is "one" (a single gradient), "many" (it climbs) or "search" (it looks without gradients). `fixed` goes to
    the function as it is. `shows_steps`: tables name it with its steps, as PGD-20.
    """

    name: str
    label: str
    paper: str
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    norm: Literal["linf", "l2"] = "linf"
    box: Literal["white", "black"] = "white"
    steps: Literal["one", "many", "search"] = "many"
    shows_steps: bool = False
    seeded: bool = True
    stops_when_wrong: bool = False
    style: Style | None = None

    def said(self, steps: object = None) -> str:
        """The attack as a table says it: PGD-20, FGSM, worst case."""
        return f"{self.label}-{steps}" if self.shows_steps and steps else self.label


_CLIMB = {"steps": 50, "restarts": 1}
_SEARCH = {"queries": 1000, "precision": None}
ATTACKS = _by_name(
    (
        Attack(
            "fgsm", "FGSM", "Goodfellow et al. 2015", "fgsm:fgsm", steps="one", seeded=False,
            style=("#b26a00", "s", (0, (4, 2))),
        ),
        Attack("fgsm-rs", "FGSM-RS", "Wong et al. 2020", "fgsm:fgsm_rs", steps="one"),
        Attack(
            "pgd", "PGD", "Madry et al. 2018", "pgd:pgd", {"steps": 20, "restarts": 1}, shows_steps=True,
            stops_when_wrong=True, style=("#b3261e", "^", "solid"),
        ),
        Attack(
            "pgd-l2", "PGD (L2)", "Madry et al. 2018", "pgd:pgd_l2", {"steps": 20, "restarts": 1}, norm="l2",
            shows_steps=True, stops_when_wrong=True,
        ),
        Attack(
            "momentum", "momentum", "Dong et al. 2018", "pgd:momentum", {"steps": 10}, shows_steps=True, seeded=False,
            stops_when_wrong=True,
        ),
        Attack(
            "transfer", "transfer", "Papernot et al. 2016", "transfer:transfer", {"steps": 10, "source": None},
            box="black", shows_steps=True, seeded=False, style=("#567a2c", "^", (0, (1, 1.2))),
        ),
        Attack(
            "apgd-ce", "APGD-CE", "Croce and Hein 2020", "apgd:apgd", _CLIMB | {"precision": None}, shows_steps=True,
        ),
        Attack(
            "apgd-margin", "APGD-margin", "Croce and Hein 2020", "apgd:apgd", _CLIMB | {"precision": None},
            fixed={"loss": "margin"}, shows_steps=True,
        ),
        Attack("fab", "FAB", "Croce and Hein 2020", "fab:fab", _CLIMB, shows_steps=True),
        Attack(
            "square", "Square", "Andriushchenko et al. 2020", "square:square", _SEARCH, box="black", steps="search",
            style=("#2b6777", "s", (0, (1, 1.2))),
        ),
        Attack(
            "worst-case", "worst case", "Croce and Hein 2020, for few classes", "worst_case:worst_case",
            _CLIMB | _SEARCH, style=("#6b1a2a", "D", "solid"),
        ),
    )
)  # fmt: skip
ONE_STEP = tuple(a.name for a in ATTACKS.values() if a.steps == "one")
BLACK_BOX = tuple(a.name for a in ATTACKS.values() if a.box == "black")


def attack_said(name: object, steps: object = None) -> str:
    """PGD-20, FGSM, worst case; a name that is not in the catalogue as it is, with its steps."""
    entry = ATTACKS.get(str(name))
    return entry.said(steps) if entry else f"{name}-{steps}" if steps else str(name)


# --- defences and backgrounds ---

_PERTURBED = ("epsilon", "ramp", "epsilon_outside", "mode", "attack_precision")
_BOUNDED = ("epsilon", "ramp", "clean_share", "attack_share", "regulariser")
_WITH_CLEAN = (*_PERTURBED, "clean_share", "separate_batchnorm", "evaluated_batchnorm")


@dataclass(frozen=True)
class Defence:
    """One way to train.

    `options`: the keys of DefenceRecipe that it uses; with epsilon among them it is trained on an attack, and judged by
    its accuracy under PGD. `certifies`: it is trained on a bound, and judged by what it proves.
    """

    name: str
    label: str
    paper: str
    function: str
    options: tuple[str, ...] = ()
    colour: str = "#4b5563"
    certifies: bool = False

    @property
    def attacks(self) -> bool:
        """Whether training attacks the model."""
        return "epsilon" in self.options


# In the order of tables. Okabe and Ito's colours, darkened where they were too pale on white.
DEFENCES = _by_name(
    (
        Defence("standard", "standard", "", "contract:standard", (), "#4b5563"),
        Defence("fgsm", "FGSM", "Goodfellow et al. 2015", "adversarial:fgsm", _WITH_CLEAN, "#0072b2"),
        Defence("fgsm-rs", "FGSM-RS", "Wong et al. 2020", "adversarial:fgsm_rs", _WITH_CLEAN, "#2a9fd6"),
        Defence(
            "free", "free", "Shafahi et al. 2019", "adversarial:free",
            ("epsilon", "ramp", "epsilon_outside", "replays"), "#b5548d",
        ),
        Defence("pgd", "PGD", "Madry et al. 2018", "adversarial:pgd", (*_WITH_CLEAN, "steps"), "#c44e00"),
        Defence(
            "trades", "TRADES", "Zhang et al. 2019", "adversarial:trades",
            (*_PERTURBED, "separate_batchnorm", "evaluated_batchnorm", "steps", "beta"), "#00805c",
        ),
        Defence("ibp", "IBP", "Gowal et al. 2019", "certified:ibp", _BOUNDED, "#8c2d5a", certifies=True),
        Defence(
            "crown-ibp", "CROWN-IBP", "Zhang et al. 2020", "certified:crown_ibp", _BOUNDED, "#3b6ea5", certifies=True
        ),
        Defence("mixup", "mixup", "Zhang et al. 2018", "noise:mixup", ("alpha",), "#a87400"),
        Defence("cutout", "cutout", "DeVries and Taylor 2017", "noise:cutout", ("size", "holes"), "#6d5a14"),
        Defence("gaussian", "Gaussian noise", "Ford et al. 2019", "noise:gaussian", ("sigma",), "#6f4aa8"),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Background:
    """How much of a training image outside the lungs the model sees.

    `gate`: a lung segmenter stands inside the model; `emptied`: films with grey lungs beside the others, towards even
    answers; `view`: the images themselves change.
    """

    name: str
    about: str
    gate: bool = False
    emptied: bool = False
    view: Literal["swap", "mask", "crop"] | None = None


BACKGROUNDS = _by_name(
    (
        Background("full", "the whole image"),
        Background("swap", "the lungs on another film's background", view="swap"),
        Background("mask", "black outside the lungs", view="mask"),
        Background("crop", "cropped to the lungs", view="crop"),
        Background(
            "emptied",
            "adds to each batch copies with the lungs filled with grey, trained towards equal class probabilities",
            emptied=True,
        ),
        Background(
            "gate", "the model contains a lung segmenter and replaces what is outside by mid-grey", gate=True
        ),
        Background("gate-emptied", "both gate and emptied", gate=True, emptied=True),
    )
)  # fmt: skip


def networks(model: str) -> tuple[str, ...]:
    """The names in the name of a model: "A+B" is an ensemble of A and B."""
    return tuple(model.split("+"))


# --- corruptions and layouts ---


@dataclass(frozen=True)
class Corruption:
    """What goes wrong with a film; an artefact is drawn on it, and knows where."""

    name: str
    label: str
    about: str
    artefact: bool = False
    function: str = ""

    @property
    def where(self) -> str:
        """Its function as "module:name"."""
        return self.function or f"{'artefacts' if self.artefact else 'acquisition'}:{self.name}"


CORRUPTIONS = _by_name(
    (
        Corruption("gaussian_noise", "Gaussian noise", "noise of the detector's electronics"),
        Corruption("poisson_noise", "Poisson noise", "too small a dose: quantum noise"),
        Corruption("defocus_blur", "defocus blur", "out of focus, as a photographed film is"),
        Corruption("motion_blur", "motion blur", "the patient breathed or moved"),
        Corruption("resolution", "resolution", "made smaller and larger again"),
        Corruption("jpeg", "JPEG", "compressed with loss"),
        Corruption("contrast", "contrast", "windowed too soft or too hard"),
        Corruption("exposure", "exposure", "too bright or too dark"),
        Corruption("gamma", "gamma", "another characteristic curve"),
        Corruption("rotation", "rotation", "the patient or the film was not straight"),
        Corruption("letters", "letters", "side markers and words such as PORTABLE", artefact=True),
        Corruption("arrows", "arrows", "arrows, as in teaching files and publications", artefact=True),
        Corruption("collimation_border", "collimation border", "the black border of the collimator", artefact=True),
        Corruption("leads_and_tubes", "leads and tubes", "ECG leads and tubes", artefact=True),
        Corruption("device", "device", "a pacemaker and its leads", artefact=True),
    )
)


@dataclass(frozen=True)
class Layout:
    """How a data set's folder or list is laid out, in the order in which they are tried."""

    name: str
    about: str
    function: str


LAYOUTS = _by_name(
    (
        Layout("list", "a manifest or list (.csv, .parquet, .txt)", "lists:read_list"),
        Layout("covidqu", "COVID-QU-Ex as published", "covidqu:read_covidqu"),
        Layout("covidx", "COVIDx: train.txt, test.txt and a folder of images", "lists:read_covidx"),
        Layout("folders", "class folders of images, optionally below Train, Val and Test", "folders:read_folders"),
    )
)


# --- saliency ---


@dataclass(frozen=True)
class Saliency:
    """One saliency method.

    `combine`: for a CAM, the function that makes a map of a layer's features and gradient, so that it can read any
    layer; with it alone, no `function` is needed. `control`: the method that shows that layer without the gradient.
    Without `model` the map is the same for every model, and is itself a control.
    """

    name: str
    label: str
    paper: str
    function: str = ""
    combine: str | None = None
    control: str | None = None
    model: bool = True


SALIENCY = _by_name(
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
        Saliency("evidence", "evidence, summed to the answer", "", "evidence:evidence_map"),
        Saliency(
            "integrated-gradients", "integrated gradients", "Sundararajan et al. 2017", "pixels:integrated_gradients"
        ),
        Saliency("smoothgrad", "SmoothGrad", "Smilkov et al. 2017", "pixels:smooth_grad"),
        Saliency("occlusion", "occlusion", "Zeiler and Fergus 2014", "pixels:occlusion"),
        Saliency("random", "random map (control)", "", "controls:random_saliency", model=False),
        Saliency("centre", "centre prior (control)", "", "controls:centre_saliency", model=False),
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
        """What the method's own layer shows without the gradient; None for what is no CAM."""
        entry = SALIENCY.get(self.base)
        return Method(entry.control, self.layer) if entry and entry.control else None

    @property
    def label(self) -> str:
        """As a table says it: LayerCAM, gate."""
        entry = SALIENCY.get(self.base)
        return (entry.label if entry else self.base) + ("" if self.layer is None else f" @ {self.layer}")


# --- measures ---


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


MEASURES = _by_name(
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
AGAINST_MASKS = tuple(m.name for m in MEASURES.values() if m.function)
HIGHER_IS_BETTER = tuple(m.name for m in MEASURES.values() if m.compared and m.better == "higher")
LOWER_IS_BETTER = tuple(m.name for m in MEASURES.values() if m.compared and m.better == "lower")


def direction(measure: str) -> int:
    """1 where more of a measure is better, -1 where less is, 0 where neither can be said."""
    entry = MEASURES.get(measure) or MEASURES.get(measure.removesuffix(" accuracy"))
    return 1 if entry is None else {"higher": 1, "lower": -1, None: 0}[entry.better]


# Beside every figure of a map against masks: what maps have that look at no model, by their name in tables.
REFERENCES = {
    "chance": "chance",
    "centre": "centre prior",
    "lung": "lung mask",
    "brightness": "brightness in the lungs",
    "edges": "edges in the lungs",
}

# --- views of the test images ---

# What is left to a model that must do without the disease, or without the rest (Maguolo and Nanni 2021).
# The lungs hidden in black, in mid-grey and in the film's own mean; exactly, and by their box, which hides the outline.
LUNGS_HIDDEN = (
    "lungs_blacked_out",
    "lungs_in_grey",
    "lungs_in_mean",
    "box_blacked_out",
    "box_in_grey",
    "box_in_mean",
)
VIEWS = (
    *LUNGS_HIDDEN,
    "lungs_only",
    "lungs_only_on_grey",  # the grey that the lung gate puts outside: black there, it does not know
    "silhouette_only",
    "border_only",
    "lungs_on_another_film",
)
GROUPINGS = ("source", "strict_external", "view")  # columns of the data by which the clean images are told apart
ATTACKED = "fgsm"  # the attack under which saliency must be stable
CERTIFIED_COLOUR = "#1f6f43"  # of what is proved
