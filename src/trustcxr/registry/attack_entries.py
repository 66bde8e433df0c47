"""Attacks: each one's name, paper, options, and what the judge of masked gradients asks of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trustcxr.registry.base import by_name

Style = tuple[str, str, Any]  # colour, marker, dash of a line


@dataclass(frozen=True)
class Attack:
    """One attack. `options`: what a recipe may say of it, and what that is unless said.

    `steps` is "one" (a single gradient), "many" (it climbs) or "search" (it looks without gradients). `fixed` goes to
    the function as it is. `shows_steps`: tables name it with its steps, as PGD-20. `about`: a sentence to its figures.
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
    about: str = ""

    def format_name(self, steps: object = None) -> str:
        """The attack as a table says it: PGD-20, FGSM, worst case."""
        return f"{self.label}-{steps}" if self.shows_steps and steps else self.label


_CLIMB = {"steps": 50, "restarts": 1}
_SEARCH = {"queries": 1000, "precision": None}
ATTACKS = by_name(
    (
        Attack(
            "fgsm", "FGSM", "Goodfellow et al. 2015", "fgsm:fgsm", steps="one", seeded=False,
            style=("#e4751c", "s", (0, (4, 2))), about="A single step, the weakest of these attacks.",
        ),
        Attack("fgsm-rs", "FGSM-RS", "Wong et al. 2020", "fgsm:fgsm_rs", steps="one"),
        Attack(
            "pgd", "PGD", "Madry et al. 2018", "pgd:pgd", {"steps": 20, "restarts": 1}, shows_steps=True,
            stops_when_wrong=True, style=("#b3261e", "^", "solid"),
            about="Many small steps: a stronger attack, which training against a single step may not withstand.",
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
            "transfer", "transfer", "Papernot et al. 2016", "transfer:transfer", {"steps": 10, "surrogate": None},
            box="black", shows_steps=True, seeded=False, style=("#544547", "^", (0, (1, 1.2))),
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
            style=("#809590", "s", (0, (1, 1.2))),
        ),
        Attack(
            "worst-case", "worst case", "Croce and Hein 2020, for few classes", "worst_case:worst_case",
            _CLIMB | _SEARCH, style=("#00002a", "D", "solid"),
        ),
    )
)  # fmt: skip
USUAL_ATTACKS = ("fgsm", "pgd")  # a single step and a climb: what is tested with unless a recipe says
PLAIN_STEP = USUAL_ATTACKS[0]  # one step from the image itself: what stronger attacks are held against
STOCHASTIC_DRAWS = (
    16  # draws that a model which answers at random is judged by, and as many that its worst image is chosen by
)
WORST_CASE = "worst-case"  # all attacks one after the other
HEADLINE_ATTACKS = (*USUAL_ATTACKS, WORST_CASE)  # the first columns of tables, in this order
STABILITY_ATTACK = USUAL_ATTACKS[0]  # under it saliency must be stable
ONE_STEP = tuple(a.name for a in ATTACKS.values() if a.steps == "one")
NEEDS_SURROGATE = tuple(a.name for a in ATTACKS.values() if "surrogate" in a.options)
AUDIT_ATTACKS = tuple(
    name for name in ATTACKS if name not in NEEDS_SURROGATE
)  # an audit has one model, and no surrogate
BLACK_BOX = tuple(a.name for a in ATTACKS.values() if a.box == "black")


def format_steps() -> str:
    """The steps that a climb has unless said: `20 for pgd and pgd-l2, ..., 50 for the others`."""
    found: dict[int, list[str]] = {}
    for attack in ATTACKS.values():
        if "steps" in attack.options:
            found.setdefault(attack.options["steps"], []).append(attack.name)
    most = max(found, key=lambda steps: len(found[steps]))
    few = [f"{steps} for {' and '.join(names)}" for steps, names in found.items() if steps != most]
    return ", ".join([*few, f"{most} for the others"])


def is_linf(attack: str) -> bool:
    """Whether an attack's epsilon is an L-infinity radius: as far as is known, of a name that is not here too."""
    return attack not in ATTACKS or ATTACKS[attack].norm == "linf"


def format_attack(name: object, steps: object = None) -> str:
    """PGD-20, FGSM, worst case; a name that is not in the catalogue as it is, with its steps."""
    entry = ATTACKS.get(str(name))
    return entry.format_name(steps) if entry else f"{name}-{steps}" if steps else str(name)
