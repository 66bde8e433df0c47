"""Legends as small inline SVGs with words beside them, so that they wrap on a phone and scale with the text."""

from typing import TYPE_CHECKING, Any

from trustcxr.report.figures.calibration import RELIABILITY_LEGEND
from trustcxr.report.figures.certified import BAR_LEGEND
from trustcxr.report.figures.svg import CLEAN_STYLE, INK, attack_style, defence_colour
from trustcxr.report.figures.training import HISTORY_LEGEND
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


def key(text: str, colour: str, *, mark: str = "", line: bool = True, dash: Any = "solid") -> "Markup":
    """One entry: a sample of the line and its marker, then the words, escaped."""
    from markupsafe import Markup, escape

    dashes = f' stroke-dasharray="{" ".join(str(2 * d) for d in dash[1])}"' if isinstance(dash, tuple) else ""
    stroke = f'<path d="M0 7H28" stroke="{colour}" stroke-width="2" fill="none"{dashes}/>' if line else ""
    sample = f'<svg width="28" height="14" viewBox="0 0 28 14" aria-hidden="true"><g fill="{colour}">'
    return Markup(sample + stroke + _MARKS[mark] + "</g></svg>") + escape(text)


def accuracy(head: Headline) -> "list[Markup]":
    """Of the dot plot."""
    entries = [key("clean", CLEAN_STYLE[0], mark=CLEAN_STYLE[1])]
    for name in head.attacks:
        colour, mark, _ = attack_style(name)
        entries.append(key(f"{head.names[name]} at epsilon {epsilon(head.epsilon)}", colour, mark=mark))
    return entries


def curves(runs: list[Run]) -> "list[Markup]":
    """Of the epsilon curves: colour is the defence, dash and marker the attack."""
    entries = [key(name, defence_colour(name)) for name in defences(runs)]
    efforts = {pair for run in runs for pair in run.efforts()}
    for name, steps in sorted(efforts, key=lambda pair: (pair[0], pair[1] or 0)):
        _, mark, dash = attack_style(name)
        entries.append(key(attack_name(name, steps), INK, mark=mark, dash=dash))
    return entries


def proof() -> "list[Markup]":
    """Of the bars between proof and attack."""
    return [key(label, colour, mark="s", line=False) for label, colour in BAR_LEGEND]


def reliability() -> "list[Markup]":
    """Of the reliability diagrams."""
    return [key(label, colour, mark=mark, dash=dash) for label, colour, mark, dash in RELIABILITY_LEGEND]


def history() -> "list[Markup]":
    """Of the training curves."""
    return [key(label, colour, dash=dash) for label, colour, dash in HISTORY_LEGEND]


def localisation(runs: list[Run]) -> "list[Markup]":
    """Of the explanation dots."""
    measured = [run for run in runs if run.saliency_methods()]
    entries = [key(name, defence_colour(name), mark="o") for name in defences(measured)]
    return [*entries, key("chance", INK, mark="|", line=False)]
