"""How a model is trained to hold up, how much it sees outside the lungs, and which networks its name names."""

from dataclasses import dataclass
from typing import Literal

from trustcxr.registry.base import by_name

_PERTURBED = ("epsilon", "ramp", "attack_precision")
_BOUNDED = ("epsilon", "ramp", "clean_weight", "attack_share", "regulariser")
_WITH_CLEAN = (*_PERTURBED, "clean_weight", "weight_perturbation")


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


# In the order of tables. No two colours look alike to any kind of colour-blind eye: a test simulates three.
DEFENCES = by_name(
    (
        Defence("standard", "standard", "", "base:standard", (), "#4b5563"),
        Defence("fgsm", "FGSM", "Goodfellow et al. 2015", "adversarial:fgsm", _WITH_CLEAN, "#0072b2"),
        Defence("fgsm-rs", "FGSM-RS", "Wong et al. 2020", "adversarial:fgsm_rs", _WITH_CLEAN, "#826762"),
        Defence("n-fgsm", "N-FGSM", "de Jorge et al. 2022", "adversarial:n_fgsm", _WITH_CLEAN, "#77718b"),
        Defence(
            "free", "free", "Shafahi et al. 2019", "adversarial:free",
            ("epsilon", "ramp", "replays"), "#859a74",
        ),
        Defence("pgd", "PGD", "Madry et al. 2018", "adversarial:pgd", (*_WITH_CLEAN, "steps"), "#c44e00"),
        Defence(
            "trades", "TRADES", "Zhang et al. 2019", "adversarial:trades",
            (*_PERTURBED, "steps", "beta"), "#5c3d03",
        ),
        Defence("ibp", "IBP", "Gowal et al. 2019", "bound_training:ibp", _BOUNDED, "#104232", certifies=True),
        Defence(
            "crown-ibp", "CROWN-IBP", "Zhang et al. 2020", "bound_training:crown_ibp", _BOUNDED, "#1796ff",
            certifies=True,
        ),
        Defence("mixup", "mixup", "Zhang et al. 2018", "noise:mixup", ("alpha",), "#ad8899"),
        Defence("cutout", "cutout", "DeVries and Taylor 2017", "noise:cutout", ("size",), "#1c0000"),
        Defence("gaussian", "Gaussian noise", "Ford et al. 2019", "noise:gaussian", ("sigma",), "#46008b"),
    )
)  # fmt: skip
USUAL_DEFENCE = DEFENCES["fgsm"].name  # what a study compares with standard training unless its recipe says
CERTIFIED_COLOUR = "#1f6f43"  # of what is proved


@dataclass(frozen=True)
class Background:
    """How much of a training image outside the lungs the model sees.

    `gate`: a lung segmenter stands inside the model; `emptied`: images with grey lungs beside the others, towards even
    answers; `view`: the images themselves change.
    """

    name: str
    about: str
    gate: bool = False
    emptied: bool = False
    view: Literal["swap", "mask", "crop"] | None = None


BACKGROUNDS = by_name(
    (
        Background("full", "the whole image"),
        Background("swap", "the lungs on another image's background", view="swap"),
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
