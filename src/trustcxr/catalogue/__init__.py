"""Every name that a recipe, a table or a figure may use, once: what it is called, who described it, what it takes.

An attack, a defence, a corruption, a layout, a saliency method or a measure is a function, its entry here, its test.
Nothing here imports torch: `function` says where the function is, as "module:name" in its own wing, or with the whole
path of the module where it stands in another package.
"""

from trustcxr.catalogue.attacks import (
    ATTACKED,
    ATTACKS,
    AUDITED,
    BLACK_BOX,
    HEADLINE_ATTACKS,
    JUDGED,
    NEEDS_SURROGATE,
    ONE_STEP,
    PLAIN_STEP,
    USUAL_ATTACKS,
    WORST_CASE,
    Attack,
    Style,
    attack_said,
    is_linf,
    steps_said,
)
from trustcxr.catalogue.defences import (
    BACKGROUNDS,
    CERTIFIED_COLOUR,
    DEFENCES,
    USUAL_DEFENCE,
    Background,
    Defence,
    networks,
)
from trustcxr.catalogue.entries import Named, function_of
from trustcxr.catalogue.films import CORRUPTIONS, GROUPINGS, LAYOUTS, LUNGS_HIDDEN, VIEWS, Corruption, Layout
from trustcxr.catalogue.measures import (
    AGAINST_MASKS,
    HIGHER_IS_BETTER,
    HIT_RATE,
    LOWER_IS_BETTER,
    MEASURES,
    NO_MAP,
    NULL_MAPS,
    ONE_CELL,
    TOLD_OF_MAPS,
    Measure,
    direction,
)
from trustcxr.catalogue.saliency import (
    ACTIVATION,
    CONTROL,
    CONTROLS,
    RANDOMISED,
    REFERENCES,
    SALIENCY,
    SHARP,
    Method,
    Saliency,
    control_said,
)
