"""Draw accuracy as dot plots, curves against epsilon, and forest plots."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trustcxr.registry import CERTIFIED_COLOUR
from trustcxr.report import formatting
from trustcxr.report.figures import svg
from trustcxr.report.load import Run
from trustcxr.report.ranking import Headline, list_defences
from trustcxr.report.tables.certified import Gap, gaps
from trustcxr.storage.schemas import AttackResult, Classification, Comparison, Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy_dots(runs: list[Run], head: Headline) -> svg.Drawing:
    """Draw clean and attacked accuracy of every run with 95 % intervals, rows as in the leaderboard."""
    attacks = [(effort, *svg.attack_style(effort.attack)[:2]) for effort in head.attacks]
    shift = 0.2 if attacks else 0.0

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        svg.label_rows(axes, [run.label for run in runs])
        for row, run in enumerate(runs):
            series: list[tuple[str, Classification | AttackResult, str, str]] = [("clean", run.clean, *svg.CLEAN_STYLE)]
            series += [(a.name, run.attacked(a, head.epsilon), colour, mark) for a, colour, mark in attacks]
            for index, (name, entry, colour, mark) in enumerate(series):
                value = entry.accuracy.value
                if value is None:
                    continue
                y = row + shift * (index - (len(series) - 1) / 2)
                error = svg.error_bars(value, entry.accuracy.interval)
                drawn = axes.errorbar(value, y, xerr=error, fmt=mark, color=colour, ms=5.5, lw=1.4, clip_on=False)
                svg.add_titles(drawn, f"{run.label}, {name}: {formatting.with_count(entry.accuracy, entry.n)}")
            constant = run.clean.constant_answer
            if constant is not None:
                axes.plot([constant] * 2, [row - 0.5, row + 0.5], color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        svg.format_shares(axes, "x")
        axes.set_xlabel("accuracy, %")

    names = ["clean", *[effort.name for effort in head.attacks]]
    at = f"at epsilon {formatting.epsilon(head.epsilon)}"
    keys = (
        svg.Key("clean", *svg.CLEAN_STYLE),
        *(svg.Key(f"{a.name} {at}", colour, mark) for a, colour, mark in attacks),
    )
    alt = f"Dot plot of {formatting.join_words(names)} accuracy of {len(runs)} runs; see the leaderboard."
    return svg.Drawing("accuracy", 640, 64 + 30 * len(runs), plot, alt, tuple(keys))


def epsilon_curves(model: str, runs: list[Run]) -> svg.Drawing:
    """Draw accuracy against epsilon for one network: a colour per defence, a dash and marker per attack."""
    epsilons = radii(runs)

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for run in runs:
            for effort in run.efforts():
                _, mark, dash = svg.attack_style(effort.attack)
                points = [(entry.epsilon or 0.0, entry.accuracy) for entry in run.sweep(effort)]
                if run.clean.accuracy.value is not None and not any(epsilon == 0 for epsilon, _ in points):
                    points.insert(0, (0.0, run.clean.accuracy))
                style = {"color": svg.defence_colour(run.defence), "ls": dash, "marker": mark}
                _draw_curve(axes, points, f"{run.training_name}, {effort.name}", lw=1.6, ms=4, **style)
        constant = next((c for c in (run.clean.constant_answer for run in runs) if c is not None), None)
        if constant is not None:
            axes.axhline(constant, color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        _epsilon_axis(axes, epsilons)
        svg.format_shares(axes, "y")
        svg.set_title(axes, model)
        axes.set(xlabel="epsilon", ylabel="accuracy, %")

    keys = [svg.Key(name, svg.defence_colour(name)) for name in list_defences(runs)]
    for effort in dict.fromkeys(effort for run in runs for effort in run.efforts()):
        _, mark, dash = svg.attack_style(effort.attack)
        keys.append(svg.Key(effort.name, svg.INK, mark, dash=dash))
    alt = f"Accuracy against epsilon, {model}; see the table below."
    return svg.Drawing(f"epsilon-{model}", 330, 260, plot, alt, tuple(keys))


def worst_curve(run: Run) -> svg.Drawing | None:
    """Draw the lowest accuracy at each epsilon, certified accuracy, and that of a constant answer; None if unknown."""
    rows = [row for row in (run.strongest(epsilon) for epsilon in radii([run])) if row.accuracy.value is not None]
    attacked = [(row.epsilon or 0.0, row.accuracy) for row in rows]
    clean = next((row.clean for row in rows if row.clean.value is not None), run.clean.accuracy)
    if clean.value is None or not attacked:
        return None
    proved = [(e.epsilon or 0.0, e.accuracy) for e in run.metrics.certified if e.accuracy.value is not None]
    constant = run.clean.constant_answer
    series = [(sorted([(0.0, clean), *attacked], key=lambda pair: pair[0]), "under attack, at most", svg.WORSE, "o")]
    if proved:
        series.append((sorted(proved, key=lambda pair: pair[0]), "proved, at least", CERTIFIED_COLOUR, "s"))

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for points, name, colour, mark in series:
            _draw_curve(axes, points, name, color=colour, marker=mark, lw=1.8, ms=5)
        if constant is not None:
            axes.axhline(constant, color=svg.QUIET, lw=1.1, ls=(0, (2, 2)), zorder=0)
        _epsilon_axis(axes, [e for e, _ in attacked])
        svg.format_shares(axes, "y")
        axes.set(xlabel="epsilon: largest change of a pixel", ylabel="accuracy, %")

    keys = [svg.Key(name, colour, mark) for _, name, colour, mark in series]
    if constant is not None:
        keys.append(svg.Key("a constant answer", svg.QUIET, dash=(0, (2, 2))))
    alt = "Accuracy against epsilon, under the strongest attack; see the table of attacks."
    return svg.Drawing("worst", 400, 230, plot, alt, tuple(keys))


def radii(runs: list[Run]) -> list[float]:
    """Return every epsilon above 0 at which a run was attacked."""
    return sorted({entry.epsilon for run in runs for entry in run.attacks if entry.epsilon})


def _draw_curve(axes: "Axes", points: Sequence[tuple[float, Share]], name: str, **style: Any) -> None:
    """Draw accuracy against epsilon with its intervals, and a title on each point."""
    x, y = [epsilon for epsilon, _ in points], [part.value or 0.0 for _, part in points]
    (line,) = axes.plot(x, y, clip_on=False, **style)
    svg.add_titles(line, *(f"{name}, epsilon {e:g}: {formatting.with_count(part)}" for e, part in points))
    band = [(epsilon, *part.interval) for epsilon, part in points if part.interval is not None]
    if len(band) > 1:
        at, low, high = zip(*band, strict=True)
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.13, lw=0)


def is_wide(epsilons: Sequence[float]) -> bool:
    """Return True if the positive epsilons need a logarithmic axis."""
    return max(epsilons) / min(epsilons) > 12


def _epsilon_axis(axes: "Axes", epsilons: list[float]) -> None:
    """Set a linear axis, or a symmetric log axis if the range is wide, with ticks at the tested epsilons."""
    if not epsilons:
        return
    wide = is_wide(epsilons)
    if wide:
        axes.set_xscale("symlog", linthresh=epsilons[0], linscale=0.35)
    shown: list[float] = [0.0]
    position = axes.transData.transform
    axes.set_xlim(0, epsilons[-1] * (1.08 if wide else 1.03))
    gap = 0.13 * (position((axes.get_xlim()[1], 0))[0] - position((0, 0))[0])
    for value in epsilons:
        if position((value, 0))[0] - position((shown[-1], 0))[0] > gap:
            shown.append(value)
    axes.set_xticks(shown, [formatting.epsilon(v) for v in shown])
    axes.set_xticks([], minor=True)


def draw_forest(
    name: str, rows: list[Comparison], measures: Sequence[str], *, columns: int = 1, width: float = 480
) -> svg.Drawing:
    """Draw robust minus standard with intervals: a panel per measure, a row per comparison; accuracy in points."""
    seeds = {row.seed for row in rows}
    labels = [_label_comparison(row, seeded=len(seeds) > 1) for row in rows]
    names, lines = list(dict.fromkeys(labels)), -(-len(measures) // columns)

    def plot(figure: "Figure") -> None:
        grid = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
        for axes, measure in zip(grid, measures, strict=False):
            scale, unit = (100, ", points") if "accuracy" in measure else (1, "")
            svg.label_rows(axes, names)
            axes.axvline(0, color=svg.INK, lw=1)
            for row, label in zip(rows, labels, strict=True):
                if row.measure == measure and row.difference.value is not None:
                    value, ends = scale * row.difference.value, row.difference.interval
                    error = svg.error_bars(value, None if ends is None else (scale * ends[0], scale * ends[1]))
                    style = {"fmt": "o", "color": svg.SIDES[row.side], "ms": 5, "lw": 1.5}
                    drawn = axes.errorbar(value, names.index(label), xerr=error, **style)
                    inside = formatting.interval(ends, scale=scale, reveal=True)
                    svg.add_titles(drawn, f"{label}: {formatting.signed(value)}{inside}, {row.side or row.outcome}")
            reach = max(max(abs(edge) for edge in axes.get_xlim()), 1e-3)
            axes.set_xlim(-reach, reach)
            axes.locator_params(axis="x", nbins=5 if columns == 1 else 3)
            axes.set_title(formatting.measure(measure) + unit, fontsize="small", loc="left")
        for axes in grid[len(measures) :]:
            axes.set_axis_off()
        figure.supxlabel("robust minus standard", fontsize="small")

    alt = f"Forest plot of {name}, robust minus standard; see the table."
    return svg.Drawing(f"comparison-{name}", width, lines * (84 + 24 * len(names)), plot, alt, svg.OUTCOMES)


def _label_comparison(row: Comparison, *, seeded: bool) -> str:
    seed = f"seed {row.seed}" if seeded and row.seed is not None else ""
    qualifier = formatting.variant(row.background, row.label, seed)
    return " · ".join(filter(None, (row.model or formatting.DASH, row.defence or formatting.DASH, qualifier)))


def forests(rows: list[Comparison]) -> list[svg.Drawing]:
    """Draw the forest plot of each accuracy that was compared."""
    measured = [row for row in rows if not row.method and row.difference.value is not None]
    measures = dict.fromkeys(row.measure for row in measured)
    return [draw_forest(name, [row for row in measured if row.measure == name], [name]) for name in measures]


_OPEN, _LOST = "#e0b252", "#eadfdd"
PROOF_LEGEND = (
    svg.Key("proved", CERTIFIED_COLOUR, "s", line=False),
    svg.Key("open: neither proved nor broken", _OPEN, "s", line=False),
    svg.Key("broken by an attack", _LOST, "s", line=False),
)


def proof_bars(runs: list[Run]) -> svg.Drawing | None:
    """Draw a bar per run and epsilon, from 0 to clean accuracy; None if nothing was certified."""
    rows = gaps(runs)
    if not rows:
        return None

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        svg.label_rows(axes, [f"{gap.run.label}, {formatting.epsilon(gap.epsilon)}" for gap in rows])
        for row, gap in enumerate(rows):
            for (start, end, colour), key in zip(proof_parts(gap), PROOF_LEGEND, strict=True):
                drawn = axes.barh(row, end - start, left=start, height=0.56, color=colour)
                svg.add_titles(list(drawn), f"{gap.run.label}: {key.text}: {formatting.percent(end - start)}")
            axes.plot([gap.certified] * 2, [row - 0.36, row + 0.36], color=svg.INK, lw=1.1)
        svg.format_shares(axes, "x")
        axes.set_xlabel("accuracy, %")

    alt = "Bars of certified accuracy, open accuracy, and accuracy lost to an attack; see the table."
    return svg.Drawing("proved", 720, 70 + 26 * len(rows), plot, alt, PROOF_LEGEND)


def proof_parts(gap: Gap) -> list[tuple[float, float, str]]:
    """Return start, end and colour of each part of the bar."""
    clean = gap.run.clean.accuracy.value
    top = gap.certified if clean is None else max(clean, gap.certified)
    broken = top if gap.attacked is None else max(gap.attacked, gap.certified)
    return [(0.0, gap.certified, CERTIFIED_COLOUR), (gap.certified, broken, _OPEN), (broken, top, _LOST)]
