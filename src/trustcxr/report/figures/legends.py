"""Legends: beside the page's figures as small inline SVGs with words, so that they wrap on a phone; in files, drawn."""

from typing import TYPE_CHECKING

from trustcxr.report.figures.colours import coloured
from trustcxr.report.figures.svg import (
    BETTER,
    CLEAN_STYLE,
    INK,
    QUIET,
    WORSE,
    Key,
    attack_style,
    defence_colour,
)
from trustcxr.report.ranking import Headline, defences
from trustcxr.report.study_folder import Run
from trustcxr.report.words import attack as attack_name
from trustcxr.report.words import epsilon

if TYPE_CHECKING:
    from markupsafe import Markup

_MARKS = {
    "o": '<circle cx="14" cy="7" r="4"/>',
    "s": '<rect x="10" y="3" width="8" height="8"/>',
    "^": '<path d="M14 2.5 18.5 11h-9z"/>',
    "D": '<path d="M14 2 19 7 14 12 9 7z"/>',
    "|": '<rect x="13" y="1" width="2" height="12"/>',
    "": "",
}


def shown(keys: tuple[Key, ...]) -> "list[Markup]":
    """Each entry for the page: a sample of the line and its marker, then the words, escaped."""
    return [_shown(key) for key in keys]


def _shown(key: Key) -> "Markup":
    from markupsafe import Markup, escape

    colour = coloured(key.colour)
    dashes = f' stroke-dasharray="{" ".join(str(2 * d) for d in key.dash[1])}"' if isinstance(key.dash, tuple) else ""
    stroke = f'<path d="M0 7H28" style="stroke:{colour}" stroke-width="2" fill="none"{dashes}/>' if key.line else ""
    sample = f'<svg width="28" height="14" viewBox="0 0 28 14" aria-hidden="true"><g style="fill:{colour}">'
    return Markup(sample + stroke + _MARKS[key.mark] + "</g></svg>") + escape(key.text)


def accuracy(head: Headline) -> tuple[Key, ...]:
    """Of the dot plot."""
    entries = [Key("clean", *CLEAN_STYLE)]
    for name in head.attacks:
        colour, mark, _ = attack_style(name)
        entries.append(Key(f"{head.names[name]} at epsilon {epsilon(head.epsilon)}", colour, mark))
    return tuple(entries)


def curves(runs: list[Run]) -> tuple[Key, ...]:
    """Of the epsilon curves: colour is the defence, dash and marker the attack."""
    entries = [Key(name, defence_colour(name)) for name in defences(runs)]
    efforts = {pair for run in runs for pair in run.efforts()}
    for name, steps in sorted(efforts, key=lambda pair: (pair[0], pair[1] or 0)):
        _, mark, dash = attack_style(name)
        entries.append(Key(attack_name(name, steps), INK, mark, dash=dash))
    return tuple(entries)


def localisation(runs: list[Run]) -> tuple[Key, ...]:
    """Of the explanation dots."""
    measured = [run for run in runs if run.saliency_methods()]
    entries = [Key(name, defence_colour(name), "o") for name in defences(measured)]
    return (*entries, Key("chance", INK, "|", line=False))


def outcome() -> tuple[Key, ...]:
    """Of the forest plots."""
    said = (("robust is better", BETTER), ("robust is worse", WORSE), ("not settled, or neither", QUIET))
    return tuple(Key(text, colour, "o") for text, colour in said)
