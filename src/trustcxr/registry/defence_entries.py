"""List the defences and the treatments of the background in training."""

from dataclasses import dataclass

from trustcxr.registry.base import by_name

_PERTURBED = ("epsilon", "ramp", "attack_precision")
_BOUNDED = ("epsilon", "ramp", "clean_weight", "regulariser")
_WITH_CLEAN = (*_PERTURBED, "clean_weight")


@dataclass(frozen=True)
class Defence:
    """A way to train.

    `options`: the keys of DefenceRecipe that it uses. With epsilon it trains on an attack; accuracy under PGD selects
    its checkpoint. `certifies`: it trains on a bound; certified accuracy selects its checkpoint.
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
class Background:
    """A treatment of the image outside the lungs in training.

    `gate`: the model contains a lung segmenter. `emptied`: adds images with grey lungs, trained towards equal class
    probabilities.
    """

    name: str
    about: str
    gate: bool = False
    emptied: bool = False


BACKGROUNDS = by_name(
    Background("full", "the whole image"),
    Background("swap", "the lungs on another image's background"),
    Background("mask", "black outside the lungs"),
    Background(
        "emptied",
        "adds to each batch copies with the lungs filled with grey, trained towards equal class probabilities",
        emptied=True,
    ),
    Background("gate", "the model contains a lung segmenter and replaces what is outside by mid-grey", gate=True),
    Background("gate-emptied", "both gate and emptied", gate=True, emptied=True),
)  # fmt: skip


def networks(model: str) -> tuple[str, ...]:
    """Split a model's name into its networks: "A+B" is an ensemble of A and B."""
    return tuple(model.split("+"))
