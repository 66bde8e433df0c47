"""Curves and dot plots as small SVGs that go into the page as they are: text stays text, nothing points outside."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trustcxr.report import words
from trustcxr.report.folder import Run
from trustcxr.report.ranking import Headline, constant_answer
from trustcxr.report.summary import verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE = "#1b2430", "#566273", "#d5dbe3"
# Okabe and Ito's colours, darkened where they were too pale on white. Shape or dash says the same as colour.
DEFENCE_COLOURS = {
    "standard": "#4b5563",
    "fgsm": "#0072b2",
    "fgsm-rs": "#2a9fd6",
    "free": "#b5548d",
    "pgd": "#c44e00",
    "trades": "#00805c",
    "mixup": "#a87400",
    "cutout": "#6d5a14",
    "gaussian": "#6f4aa8",
}
ATTACK_STYLES: dict[str, tuple[str, str, Any]] = {
    "fgsm": ("#b26a00", "s", (0, (4, 2))),
    "pgd": ("#b3261e", "^", "solid"),
    "worst-case": ("#6b1a2a", "D", "solid"),
    "square": ("#2b6777", "s", (0, (1, 1.2))),
    "transfer": ("#567a2c", "^", (0, (1, 1.2))),
}
CLEAN_STYLE = ("#1f4e79", "o")
_OTHER_STYLE = ("#6f4aa8", "D", (0, (1, 1.5)))
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trustcxr",
    "text.parse_math": False,  # a class may be called $x$
    "font.family": "DejaVu Sans",  # wide, so that text set in the reader's own font fits where this one did
    "font.size": 11,
    "axes.edgecolor": "#8793a3",
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
}


def attack_style(name: str) -> tuple[str, str, Any]:
    """Colour, marker and dash of an attack."""
    return ATTACK_STYLES.get(name, _OTHER_STYLE)


def defence_colour(name: str) -> str:
    """The colour of a defence, the same in every figure."""
    return DEFENCE_COLOURS.get(name, "#333333")


def draw(width: float, height: float, plot: "Callable[[Figure], None]", *, alt: str, key: str) -> str:
    """Draw into a figure of width x height CSS pixels and return it as an inline SVG element.

    `key` is unique in the page: it keeps this figure's ids apart from the others'.
    """
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72))
        figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
        plot(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), width, height, alt, key)


def _inline(svg: str, width: float, height: float, alt: str, key: str) -> str:
    """Take out the XML prolog, metadata, namespaces and style, and make the ids the figure's own."""
    from html import escape

    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<style\b.*?</style>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r"url\(#([^)]+)\)", body)) | set(re.findall(r'href="#([^"]+)"', body))
    body = re.sub(r'(<\w[^<>]*?) id="([^"]*)"', lambda m: m[0] if m[2] in used else m[1], body)
    for name in used:
        body = body.replace(f'id="{name}"', f'id="{key}-{name}"').replace(f"(#{name})", f"(#{key}-{name})")
        body = body.replace(f'href="#{name}"', f'href="#{key}-{name}"')
    body = re.sub(r" font-family: [^;\"]*;", "", body)  # the style sheet sets the page's own
    body = re.sub(r"<defs>\s*</defs>", "", body)
    body = re.sub(r"\n\s*", "\n", body)
    head = (
        f'<svg role="img" aria-label="{escape(alt)}" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}"><title>{escape(alt)}</title>'
    )
    return head + body


def _percent_axis(axis: Any, low: float = 0.0, high: float = 1.0) -> None:
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    axis.set_major_locator(MultipleLocator(0.25 if high - low > 0.5 else 0.1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))


def _error(value: float, ci: Any) -> "list[list[float]] | None":
    pair = words.interval(ci)
    return None if pair is None else [[max(value - pair[0], 0.0)], [max(pair[1] - value, 0.0)]]


def _rows(axes: "Axes", labels: Sequence[str]) -> None:
    """Put a label and a faint line at each row, the first on top."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row in range(len(labels)):
        axes.axhline(row, color=RULE, linewidth=0.7, zorder=0)


def accuracy_dots(runs: list[Run], head: Headline) -> str:
    """Clean, FGSM and PGD accuracy of every run as dots with their 95 % intervals, rows as in the leaderboard."""
    attacks = [(name, *attack_style(name)[:2]) for name in head.attacks]
    shift = 0.2 if attacks else 0.0

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _rows(axes, [run.label for run in runs])
        for row, run in enumerate(runs):
            series = [(run.metrics.get("clean"), *CLEAN_STYLE)]
            series += [(run.attacked(name, head.epsilon), colour, mark) for name, colour, mark in attacks]
            for place, (entry, colour, mark) in enumerate(series):
                value = words.finite(words.get(entry, "accuracy"))
                if value is None:
                    continue
                y = row + shift * (place - (len(series) - 1) / 2)
                error = _error(value, words.get(entry, "accuracy_ci"))
                axes.errorbar(value, y, xerr=error, fmt=mark, color=colour, ms=5.5, lw=1.4, capsize=0, clip_on=False)
            constant = constant_answer(run)
            if constant is not None:
                axes.plot([constant] * 2, [row - 0.5, row + 0.5], color=QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        axes.set_xlim(0, 1)
        _percent_axis(axes.xaxis)
        axes.set_xlabel("accuracy, %")

    names = ["clean", *[head.names[a] for a in head.attacks]]
    alt = f"Dot plot of {words.listed(names)} accuracy of {len(runs)} runs; the numbers stand in the leaderboard."
    return draw(640, 64 + 30 * len(runs), plot, alt=alt, key="dots")


def epsilon_curves(model: str, runs: list[Run], key: str) -> str:
    """Accuracy against epsilon for the runs of one network: a colour per defence, a dash and marker per attack."""
    epsilons = sorted({float(e["epsilon"]) for run in runs for e in run.attacks if float(e["epsilon"]) > 0})

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for run in runs:
            for attack in sorted({e["attack"] for e in run.attacks}):
                _curve(axes, run, attack)
        constant = next((c for c in map(constant_answer, runs) if c is not None), None)
        if constant is not None:
            axes.axhline(constant, color=QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        _epsilon_axis(axes, epsilons)
        axes.set_ylim(-0.02, 1.02)
        _percent_axis(axes.yaxis)
        axes.grid(axis="y", color=RULE, lw=0.7)
        axes.set_axisbelow(True)
        axes.set_title(model, fontsize=12, fontweight="bold", loc="left")
        axes.set_xlabel("epsilon")
        axes.set_ylabel("accuracy, %")

    return draw(
        330, 260, plot, alt=f"Accuracy against epsilon, {model}; the numbers stand in the table below.", key=key
    )


def _curve(axes: "Axes", run: Run, attack: str) -> None:
    _, mark, dash = attack_style(attack)
    colour = defence_colour(run.defence)
    entries = run.sweep(attack)
    points = [(float(e["epsilon"]), float(e["accuracy"]), words.interval(e.get("accuracy_ci"))) for e in entries]
    clean = words.finite(run.clean("accuracy"))
    if clean is not None and not any(p[0] == 0 for p in points):
        points.insert(0, (0.0, clean, words.interval(run.clean("accuracy_ci"))))
    x, y = [p[0] for p in points], [p[1] for p in points]
    axes.plot(x, y, color=colour, ls=dash, lw=1.6, marker=mark, ms=4, clip_on=False)
    band = [(p[0], *p[2]) for p in points if p[2] is not None]
    if len(band) > 1:
        at, low, high = zip(*band, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.12, lw=0)


def is_wide(epsilons: Sequence[float]) -> bool:
    """Whether the positive epsilons span more than an even axis shows."""
    return max(epsilons) / min(epsilons) > 12


def _epsilon_axis(axes: "Axes", epsilons: list[float]) -> None:
    """Even steps to the smallest epsilon, decades beyond it where the range is wide; ticks at what was tested."""
    if not epsilons:
        return
    wide = is_wide(epsilons)
    if wide:
        axes.set_xscale("symlog", linthresh=epsilons[0], linscale=0.35)
    shown: list[float] = [0.0]
    position = axes.transData.transform
    axes.set_xlim(0, epsilons[-1] * (1.08 if wide else 1.03))
    room = 0.13 * (position((axes.get_xlim()[1], 0))[0] - position((0, 0))[0])
    for value in epsilons:
        if position((value, 0))[0] - position((shown[-1], 0))[0] > room:
            shown.append(value)
    axes.set_xticks(shown, [words.epsilon(v) for v in shown])
    axes.set_xticks([], minor=True)


_HISTORY = (
    ("train_accuracy", "training", "#8793a3", "solid"),
    ("val_accuracy", "validation, clean", CLEAN_STYLE[0], "solid"),
    ("val_fgsm_accuracy", "validation, FGSM", ATTACK_STYLES["fgsm"][0], (0, (4, 2))),
    ("val_pgd_accuracy", "validation, PGD", ATTACK_STYLES["pgd"][0], (0, (1, 1.2))),
)
HISTORY_LEGEND = [(label, colour, dash) for _, label, colour, dash in _HISTORY]


def training_curve(run: Run, key: str) -> str | None:
    """Accuracy against epoch from history.csv, the epoch that was kept marked; None where there is nothing to draw."""
    table = run.history
    if table is None or "epoch" not in table or not any(name in table for name, *_ in _HISTORY):
        return None
    best = words.finite(words.get(run.metrics, "training", "best_epoch"))

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for name, _, colour, dash in _HISTORY:
            if name in table:
                rows = table[["epoch", name]].apply(_numeric).dropna()
                mark = "o" if len(rows) == 1 else ""
                axes.plot(rows["epoch"], rows[name], color=colour, ls=dash, lw=1.7, marker=mark, ms=4, clip_on=False)
        if best is not None:
            axes.axvline(best, color=QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        axes.set_ylim(-0.02, 1.02)
        _percent_axis(axes.yaxis)
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y", color=RULE, lw=0.7)
        axes.set_title(run.label, fontsize=12, fontweight="bold", loc="left")
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy, %")

    return draw(330, 230, plot, alt=f"Accuracy against epoch while training {run.label}.", key=key)


def _numeric(column: "pd.Series") -> "pd.Series":
    import pandas as pd

    return pd.to_numeric(column, errors="coerce")


def explanation_dots(runs: list[Run]) -> str | None:
    """Infection energy, IoU and hit rate of every run (first method) as dots with intervals, chance as a tick."""
    measured = [(run, next(iter(run.saliency_methods().values()))) for run in runs if run.saliency_methods()]
    names = ("infection_energy", "infection_iou", "pointing_hit_rate")
    if not any(words.finite(document.get(name)) is not None for _, document in measured for name in names):
        return None

    def plot(figure: "Figure") -> None:
        panels = figure.subplots(1, len(names), sharey=True)
        for axes, name in zip(panels, names, strict=True):
            _rows(axes, [run.label for run, _ in measured])
            axes.set_title(words.measure(name), fontsize=11, loc="left")
            for row, (run, document) in enumerate(measured):
                value, chance = words.finite(document.get(name)), words.finite(document.get(f"{name}_chance"))
                if chance is not None:
                    axes.plot([chance] * 2, [row - 0.34, row + 0.34], color=INK, lw=1.6)
                if value is not None:
                    error, colour = _error(value, document.get(f"{name}_ci")), defence_colour(run.defence)
                    axes.errorbar(value, row, xerr=error, fmt="o", color=colour, ms=5.5, lw=1.5, clip_on=False)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=3)

    alt = f"Dot plot of localisation beside chance for {len(measured)} runs; the numbers stand in the table."
    return draw(760, 74 + 24 * len(measured), plot, alt=alt, key="localisation")


def forest(measure: str, rows: list[dict[str, Any]], key: str) -> str | None:
    """Difference robust minus standard of one measure with its interval, a row per comparison, zero marked."""
    rows = [row for row in rows if words.finite(row.get("difference")) is not None]
    if not rows:
        return None
    colours = {"higher": "#00664a", "lower": "#b3261e", "not settled": QUIET}
    scale = 100 if "accuracy" in measure else 1

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _rows(axes, [f"{row.get('model', words.DASH)} · {row.get('defence', words.DASH)}" for row in rows])
        axes.axvline(0, color=INK, lw=1)
        for place, row in enumerate(rows):
            value = scale * float(row["difference"])
            pair = words.interval(row.get("difference_ci"))
            error = _error(value, None if pair is None else [scale * pair[0], scale * pair[1]])
            axes.errorbar(value, place, xerr=error, fmt="o", color=colours[verdict(row)], ms=5.5, lw=1.5)
        reach = max(abs(edge) for edge in axes.get_xlim())
        axes.set_xlim(-reach, reach)
        axes.locator_params(axis="x", nbins=5)
        unit = ", points" if scale == 100 else ""
        axes.set_title(words.measure(measure), fontsize=12, fontweight="bold", loc="left")
        axes.set_xlabel(f"robust minus standard{unit}")

    alt = f"Forest plot of {words.measure(measure)}, robust minus standard; the numbers stand in the table."
    return draw(480, 84 + 22 * len(rows), plot, alt=alt, key=key)
