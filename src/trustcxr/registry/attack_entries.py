"""List the attacks with their papers, options and properties."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from trustcxr.registry.base import by_name

Style = tuple[str, str, Any]  # colour, marker, dash of a line


@dataclass(frozen=True)
class Attack:
    """An attack.

    `options`: what a recipe may set, with defaults. `fixed`: further arguments of the function. `steps`: "one"
    gradient, "many" gradients, or "search" without gradients. `shows_steps`: tables add the steps, as in PGD-20, or the
    queries, as in Square-1000.
    `about`: a sentence for its figures.
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

    def format_name(self, steps: object = None, queries: object = None) -> str:
        """Format the name for a table: PGD-20, FGSM, worst-case-30/300 (steps/queries)."""
        if not self.shows_steps or not (steps or queries):
            return self.label
        both = steps and queries and {"steps", "queries"} <= self.options.keys()
        return f"{self.label}-{steps}/{queries}" if both else f"{self.label}-{steps or queries}"


_CLIMB = {"steps": 50, "restarts": 1}
_PGD: dict[str, Any] = {"steps": 20, "restarts": 1, "precision": None}
_SEARCH = {"queries": 1000, "precision": None}
ATTACKS = by_name(
    Attack(
        "fgsm", "FGSM", "Goodfellow et al. 2015", "pgd:fgsm", steps="one", seeded=False,
        style=("#e4751c", "s", (0, (4, 2))), about="A single step, the weakest of these attacks.",
    ),
    Attack("fgsm-rs", "FGSM-RS", "Wong et al. 2020", "pgd:fgsm_rs", steps="one"),
    Attack(
        "pgd", "PGD", "Madry et al. 2018", "pgd:pgd", _PGD, shows_steps=True,
        stops_when_wrong=True, style=("#b3261e", "^", "solid"),
        about="Many small steps: a stronger attack, which training against a single step may not withstand.",
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
    return entry.format_name(steps, queries) if entry else f"{name}-{steps}" if steps else str(name)


class Effort(NamedTuple):
    """An attack with its numbers of steps and queries: accuracies compare if these are the same."""

    attack: str
    steps: int | None = None
    queries: int | None = None

    @property
    def name(self) -> str:
        """Return the name for a table."""
        return format_attack(*self)
