"""List every name that a recipe, a table or a figure may use, with its label, paper and options.

To add an attack, defence, corruption, layout, saliency method or measure, write the function, its entry and its test.
Nothing here imports torch. `function` is "module:name" in the entry's package, or "package.module:name" elsewhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml


@dataclass(frozen=True)
class Entry:
    """An entry; recipes, commands and files on disk use its name."""

    name: str


AnyEntry = TypeVar("AnyEntry", bound=Entry)


def by_name(*entries: AnyEntry) -> dict[str, AnyEntry]:
    """Index entries by name, in their order."""
    return {entry.name: entry for entry in entries}


def load_function(package: str, function: str) -> Callable[..., Any]:
    """Import a function: "module:name" of a package, as in ("attacks", "pgd:pgd_l2"), or "package.module:name"."""
    module, _, name = function.partition(":")
    path = module if "." in module else f"trustcxr.{package}.{module}"
    return getattr(import_module(path), name)


@dataclass(frozen=True)
class Attack(Entry):
    """An attack.

    `options`: what a recipe may set, with defaults. `fixed`: further arguments of the function. `steps`: "one"
    gradient, "many" gradients, or "search" without gradients. `shows_steps`: tables add the steps, as in PGD-20, or the
    queries, as in Square-1000.
    """

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
    style: tuple[str, str, Any] | None = None  # colour, marker, dash of a line


_CLIMB = {"steps": 50, "restarts": 1}
_PGD: dict[str, Any] = {"steps": 20, "restarts": 1, "precision": None}
_SEARCH = {"queries": 1000, "precision": None}
ATTACKS = by_name(
    Attack(
        "fgsm", "FGSM", "Goodfellow et al. 2015", "pgd:fgsm", steps="one", seeded=False,
        style=("#e4751c", "s", (0, (4, 2))),
    ),
    Attack("fgsm-rs", "FGSM-RS", "Wong et al. 2020", "pgd:fgsm_rs", steps="one"),
    Attack(
        "pgd", "PGD", "Madry et al. 2018", "pgd:pgd", _PGD, shows_steps=True,
        stops_when_wrong=True, style=("#b3261e", "^", "solid"),
    ),
    Attack(
        "pgd-l2", "PGD (L2)", "Madry et al. 2018", "pgd:pgd_l2", _PGD, norm="l2", shows_steps=True,
        stops_when_wrong=True,
    ),
    Attack(
        "momentum", "momentum", "Dong et al. 2018", "pgd:momentum", {"steps": 10}, shows_steps=True, seeded=False,
        stops_when_wrong=True,
    ),
    Attack(
        "transfer", "transfer", "Papernot et al. 2016", "adaptive:transfer", {"steps": 10, "surrogate": None},
        box="black", shows_steps=True, seeded=False, style=("#544547", "^", (0, (1, 1.2))),
    ),
    Attack("apgd-ce", "APGD-CE", "Croce and Hein 2020", "apgd:apgd", _CLIMB | {"precision": None}, shows_steps=True),
    Attack(
        "apgd-margin", "APGD-margin", "Croce and Hein 2020", "apgd:apgd", _CLIMB | {"precision": None},
        fixed={"loss": "margin"}, shows_steps=True,
    ),
    Attack("fab", "FAB", "Croce and Hein 2020", "apgd:fab", _CLIMB, shows_steps=True),
    Attack(
        "square", "Square", "Andriushchenko et al. 2020", "square:square", _SEARCH, box="black", steps="search",
        shows_steps=True, style=("#809590", "s", (0, (1, 1.2))),
    ),
    Attack(
        "worst-case", "worst-case", "Croce and Hein 2020, for few classes", "worst_case:worst_case", _CLIMB | _SEARCH,
        shows_steps=True, style=("#00002a", "D", "solid"),
    ),
)  # fmt: skip
USUAL_ATTACKS = ("fgsm", "pgd")  # default attacks of an evaluation
PLAIN_STEP = USUAL_ATTACKS[0]  # one step from the image itself: the baseline of stronger attacks
STOCHASTIC_DRAWS = 16  # forward passes averaged for a stochastic model; as many again choose its worst image
WORST_CASE = "worst-case"  # all attacks in sequence
HEADLINE_ATTACKS = (*USUAL_ATTACKS, WORST_CASE)  # the first columns of tables, in this order
STABILITY_ATTACK = USUAL_ATTACKS[0]  # saliency maps must be stable under it
ONE_STEP = tuple(a.name for a in ATTACKS.values() if a.steps == "one")
NEEDS_SURROGATE = tuple(a.name for a in ATTACKS.values() if "surrogate" in a.options)
AUDIT_ATTACKS = tuple(name for name in ATTACKS if name not in NEEDS_SURROGATE)  # an audit has no surrogate
BLACK_BOX = tuple(a.name for a in ATTACKS.values() if a.box == "black")


def format_steps() -> str:
    """Format the default steps of attacks: `20 for pgd and pgd-l2, ..., 50 for the others`."""
    names: dict[int, list[str]] = {}
    for attack in ATTACKS.values():
        if "steps" in attack.options:
            names.setdefault(attack.options["steps"], []).append(attack.name)
    usual = max(names, key=lambda steps: len(names[steps]))
    others = [f"{steps} for {' and '.join(attacks)}" for steps, attacks in names.items() if steps != usual]
    return ", ".join([*others, f"{usual} for the others"])


def is_linf(attack: str) -> bool:
    """Tell whether an attack's epsilon is an L-infinity radius; True for unknown names."""
    return attack not in ATTACKS or ATTACKS[attack].norm == "linf"


GREY_LEVELS = 255  # of white; epsilon 0.02 is 5.1 of them


def format_attack(name: object, steps: object = None, queries: object = None) -> str:
    """Format an attack with its effort: PGD-20, FGSM, worst-case-30/300; an unknown name unchanged, with its steps."""
    entry = ATTACKS.get(str(name))
    if entry is None:
        return f"{name}-{steps}" if steps else str(name)
    if not entry.shows_steps or not (steps or queries):
        return entry.label
    both = steps and queries and {"steps", "queries"} <= entry.options.keys()
    return f"{entry.label}-{steps}/{queries}" if both else f"{entry.label}-{steps or queries}"


class Effort(NamedTuple):
    """An attack with its numbers of steps and queries: accuracies compare if these are the same."""

    attack: str
    steps: int | None = None
    queries: int | None = None

    @property
    def name(self) -> str:
        """Return the name for a table."""
        return format_attack(*self)


@dataclass(frozen=True)
class Corruption(Entry):
    """A corruption; an artefact is drawn on the image and has a mask."""

    label: str
    about: str
    artefact: bool = False
    function: str = ""

    @property
    def where(self) -> str:
        """Return its function as "module:name"."""
        return self.function or f"{'artefacts' if self.artefact else 'acquisition'}:{self.name}"


CORRUPTIONS = by_name(
    Corruption("gaussian_noise", "Gaussian noise", "noise of the detector's electronics"),
    Corruption("poisson_noise", "Poisson noise", "too small a dose: quantum noise"),
    Corruption("defocus_blur", "defocus blur", "out of focus, as a photographed image is"),
    Corruption("motion_blur", "motion blur", "the patient breathed or moved"),
    Corruption("resolution", "resolution", "made smaller and larger again"),
    Corruption("jpeg", "JPEG", "compressed with loss"),
    Corruption("contrast", "contrast", "windowed too soft or too hard"),
    Corruption("exposure", "exposure", "too bright or too dark"),
    Corruption("gamma", "gamma", "another characteristic curve"),
    Corruption("rotation", "rotation", "the patient or the image was not straight"),
    Corruption("letters", "letters", "side markers and words such as PORTABLE", artefact=True),
    Corruption("arrows", "arrows", "arrows, as in teaching files and publications", artefact=True),
    Corruption("collimation_border", "collimation border", "the black border of the collimator", artefact=True),
    Corruption("leads_and_tubes", "leads and tubes", "ECG leads and tubes", artefact=True),
    Corruption("device", "device", "a pacemaker and its leads", artefact=True),
)


@dataclass(frozen=True)
class Layout(Entry):
    """A layout of a data set's folder or list; layouts are tried in order."""

    about: str
    function: str


LAYOUTS = by_name(
    Layout("list", "a manifest or list (.csv, .parquet, .txt)", "csv_lists:read_list"),
    Layout("covidqu", "COVID-QU-Ex as published", "folders:read_covidqu"),
    Layout("covidx", "COVIDx: train.txt, test.txt and a folder of images", "csv_lists:read_covidx"),
    Layout("folders", "class folders of images, optionally below Train, Val and Test", "folders:read_folders"),
)

# Views that hide the lungs, or all else (Maguolo and Nanni 2021): with black, mid-grey or the image's mean, exactly or
# by the lungs' box, which hides their outline.
LUNGS_HIDDEN = (
    *("lungs_blacked_out", "lungs_in_grey", "lungs_in_mean"),
    *("box_blacked_out", "box_in_grey", "box_in_mean"),
)
LUNGS_ONLY = ("lungs_only", "lungs_only_on_grey")  # grey as the lung gate fills: its model has never seen black there
VIEWS = (*LUNGS_HIDDEN, *LUNGS_ONLY, "silhouette_only", "border_only", "lungs_on_another_image")
GROUPINGS = ("source", "strict_external", "view")  # columns by which clean images are grouped

_PERTURBED = ("epsilon", "ramp", "attack_precision")
_BOUNDED = ("epsilon", "ramp", "clean_weight", "regulariser")
_WITH_CLEAN = (*_PERTURBED, "clean_weight")


@dataclass(frozen=True)
class Defence(Entry):
    """A way to train.

    `options`: the keys of DefenceRecipe that it uses. With epsilon it trains on an attack; accuracy under PGD selects
    its checkpoint. `certifies`: it trains on a bound; certified accuracy selects its checkpoint.
    """

    label: str
    paper: str
    function: str
    options: tuple[str, ...] = ()
    colour: str = "#4b5563"
    certifies: bool = False

    @property
    def attacks(self) -> bool:
        """Tell whether training attacks the model."""
        return "epsilon" in self.options


# In the order of tables. The colours differ for three kinds of colour blindness, which a test simulates.
DEFENCES = by_name(
    Defence("standard", "standard", "", "base:standard", (), "#4b5563"),
    Defence("fgsm", "FGSM", "Goodfellow et al. 2015", "adversarial:fgsm", _WITH_CLEAN, "#0072b2"),
    Defence("fgsm-rs", "FGSM-RS", "Wong et al. 2020", "adversarial:fgsm_rs", _WITH_CLEAN, "#826762"),
    Defence("n-fgsm", "N-FGSM", "de Jorge et al. 2022", "adversarial:n_fgsm", _WITH_CLEAN, "#77718b"),
    Defence("free", "free", "Shafahi et al. 2019", "adversarial:free", ("epsilon", "ramp", "replays"), "#859a74"),
    Defence("pgd", "PGD", "Madry et al. 2018", "adversarial:pgd", (*_WITH_CLEAN, "steps"), "#c44e00"),
    Defence("trades", "TRADES", "Zhang et al. 2019", "adversarial:trades", (*_PERTURBED, "steps", "beta"), "#5c3d03"),
    Defence("ibp", "IBP", "Gowal et al. 2019", "bound_training:ibp", _BOUNDED, "#104232", certifies=True),
    Defence(
        "crown-ibp", "CROWN-IBP", "Zhang et al. 2020", "bound_training:crown_ibp", _BOUNDED, "#1796ff", certifies=True,
    ),
    Defence("mixup", "mixup", "Zhang et al. 2018", "noise:mixup", ("alpha",), "#ad8899"),
    Defence("cutout", "cutout", "DeVries and Taylor 2017", "noise:cutout", ("size",), "#1c0000"),
    Defence("gaussian", "Gaussian noise", "Ford et al. 2019", "noise:gaussian", ("sigma",), "#46008b"),
)  # fmt: skip
USUAL_DEFENCE = DEFENCES["fgsm"].name  # compared with standard training by default
CERTIFIED_COLOUR = "#1f6f43"  # of certified accuracy


@dataclass(frozen=True)
class Background(Entry):
    """A treatment of the image outside the lungs in training.

    `gate`: the model contains a lung segmenter, and replaces what is outside by mid-grey. `emptied`: adds to each batch
    copies with the lungs filled with grey, trained towards equal class probabilities.
    """

    gate: bool = False
    emptied: bool = False


BACKGROUNDS = by_name(
    Background("full"),
    Background("swap"),  # the lungs on another image's background
    Background("mask"),  # black outside the lungs
    Background("emptied", emptied=True),
    Background("gate", gate=True),
    Background("gate-emptied", gate=True, emptied=True),
)


def networks(model: str) -> tuple[str, ...]:
    """Split a model's name into its networks: "A+B" is an ensemble of A and B."""
    return tuple(model.split("+"))


@dataclass(frozen=True)
class Measure(Entry):
    """A measure of a saliency map; without a function, of predictions or of several maps.

    `better`: the better direction, or None. `function` takes maps (B, H, W) and masks of kind `mask`, both cut to the
    mask `within`. `chance`: score of an uninformative map: the mask's share of the area, a half, or as many random
    pixels. `tuned`: uses the threshold chosen on validation. `about`: description if there is no function; `beware`:
    what it does not mean.
    """

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


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is a hundred times faster
_ENTRIES = yaml.load(Path(__file__).with_name("measures.yaml").read_text(encoding="utf-8"), Loader=_LOADER)
MEASURES = by_name(*(Measure(**entry) for entry in _ENTRIES))
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


@dataclass(frozen=True)
class Saliency(Entry):
    """A saliency method.

    `combine`: for a CAM, the function that combines any layer's features and gradient; it replaces `function`.
    `baseline`: the method that shows the same layer without the gradient. `model` False: the map is the same for every
    model, and is a baseline map. `gradients` False: it uses no gradient.
    """

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
        "layercam-smooth", "LayerCAM, smoothed", "Jiang et al. 2021", "", "cam:_layer_cam_map", "activation-smooth",
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
