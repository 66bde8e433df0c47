"""List every name that a recipe, a table or a figure may use, with its label, paper and options.

To add an attack, defence, corruption, layout, saliency method or measure, write the function, its entry and its test.
Nothing here imports torch. `function` is "module:name" in the entry's package, or "package.module:name" elsewhere.
"""

from trustcxr.registry.attack_entries import (
    ATTACKS,
    AUDIT_ATTACKS,
    BLACK_BOX,
    GREY_LEVELS,
    HEADLINE_ATTACKS,
    NEEDS_SURROGATE,
    ONE_STEP,
    PLAIN_STEP,
    STABILITY_ATTACK,
    STOCHASTIC_DRAWS,
    USUAL_ATTACKS,
    WORST_CASE,
    Attack,
    Effort,
    format_attack,
    format_steps,
    is_linf,
)
from trustcxr.registry.base import load_function
from trustcxr.registry.data_entries import (
    CORRUPTIONS,
    GROUPINGS,
    LAYOUTS,
    LUNGS_HIDDEN,
    LUNGS_ONLY,
    VIEWS,
    Corruption,
    Layout,
)
from trustcxr.registry.defence_entries import (
    BACKGROUNDS,
    CERTIFIED_COLOUR,
    DEFENCES,
    USUAL_DEFENCE,
    Background,
    Defence,
    networks,
)
from trustcxr.registry.measure_entries import (
    AGAINST_MASKS,
    HEADLINE_MEASURES,
    HIGHER_IS_BETTER,
    HIT_RATE,
    LOWER_IS_BETTER,
    MEASURES,
    NO_MAP,
    NULL_MAPS,
    ONE_CELL,
    Measure,
    direction,
)
from trustcxr.registry.saliency_entries import (
    ACTIVATION,
    BASELINE_MAPS,
    RANDOM_MAP,
    RANDOMISED,
    REFERENCES,
    SALIENCY,
    SHARP,
    Method,
    Saliency,
    format_baseline,
)
