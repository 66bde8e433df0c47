"""Draw charts: accuracy, its curves and comparisons, reliability, localisation, randomisation, ROC."""

from collections.abc import Sequence
from typing import Any

from trustcxr.registry import ATTACKS, CERTIFIED_COLOUR, MEASURES, USUAL_ATTACKS
from trustcxr.report import formatting
from trustcxr.report.figures import svg
from trustcxr.report.key_findings import Headline, list_defences
from trustcxr.report.load import Run
from trustcxr.report.tables.robustness import Proof, list_conditions, list_proofs
from trustcxr.report.tables.saliency import documents
from trustcxr.storage import schemas


def accuracy_dots(runs: list[Run], head: Headline) -> svg.Drawing:
    """Draw clean and attacked accuracy of every run with 95 % intervals, rows as in the leaderboard."""
    names = ["clean", *(effort.name for effort in head.attacks)]
    styles = [svg.CLEAN_STYLE, *(svg.attack_style(effort.attack)[:2] for effort in head.attacks)]

    def plot(figure: "svg.Figure") -> None:
        axes = figure.add_subplot()
        svg.label_rows(axes, [run.label for run in runs])
        for row, run in enumerate(runs):
            attacked = [run.attacked(effort, head.epsilon) for effort in head.attacks]
            entries: list[schemas.Classification | schemas.AttackResult] = [run.clean, *attacked]
            for index, (name, entry, (colour, mark)) in enumerate(zip(names, entries, styles, strict=True)):
                title = f"{run.label}, {name}: {formatting.with_count(entry.accuracy, entry.n)}"
                y = row + 0.2 * (index - len(head.attacks) / 2)
                svg.draw_interval(axes, entry.accuracy, y, title, colour, fmt=mark, ms=5.5, lw=1.4, clip_on=False)
            if (constant := run.clean.constant_answer) is not None:
                axes.plot([constant] * 2, [row - 0.5, row + 0.5], color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        svg.format_shares(axes, "x")
        axes.set_xlabel("accuracy, %")

    at = f" at epsilon {formatting.epsilon(head.epsilon)}"
    keys = [svg.Key(name + at * (k > 0), *style) for k, (name, style) in enumerate(zip(names, styles, strict=True))]
    alt = f"Dot plot of {formatting.join_words(names)} accuracy of {len(runs)} runs; see the leaderboard."
    return svg.Drawing("accuracy", 640, 64 + 30 * len(runs), plot, alt, tuple(keys))


def epsilon_curves(model: str, runs: list[Run]) -> svg.Drawing:
    """Draw accuracy against epsilon for one network: a colour per defence, a dash and marker per attack."""
    epsilons = radii(runs)

    def plot(figure: "svg.Figure") -> None:
        axes = figure.add_subplot()
        for run in runs:
            for effort in run.efforts():
                _, mark, dash = svg.attack_style(effort.attack)
                points = [(entry.epsilon or 0.0, entry.accuracy) for entry in run.attacks if entry.effort == effort]
                points += [] if any(epsilon == 0 for epsilon, _ in points) else [(0.0, run.clean.accuracy)]
                style = {"color": svg.defence_colour(run.defence), "ls": dash, "marker": mark}
                variant = formatting.variant(run.metrics.background, run.metrics.label)
                name = f"{run.defence} ({variant})" if variant else run.defence
                _draw_curve(axes, points, f"{name}, {effort.name}", lw=1.6, ms=4, **style)
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
    clean = next((row.clean for row in rows if row.clean.value is not None), run.clean.accuracy)
    if clean.value is None or not rows:
        return None
    constant, keys = run.clean.constant_answer, [svg.Key("under attack, at most", svg.WORSE, "o")]
    series = [[(0.0, clean), *((row.epsilon or 0.0, row.accuracy) for row in rows)]]
    if proved := [(e.epsilon or 0.0, e.accuracy) for e in run.metrics.certified if e.accuracy.value is not None]:
        series.append(proved)
        keys.append(svg.Key("proved, at least", CERTIFIED_COLOUR, "s"))

    def plot(figure: "svg.Figure") -> None:
        axes = figure.add_subplot()
        for points, key in zip(series, keys, strict=False):
            _draw_curve(axes, points, key.text, color=key.colour, marker=key.mark, lw=1.8, ms=5)
        if constant is not None:
            axes.axhline(constant, color=svg.QUIET, lw=1.1, ls=(0, (2, 2)), zorder=0)
        _epsilon_axis(axes, [row.epsilon or 0.0 for row in rows])
        svg.format_shares(axes, "y")
        axes.set(xlabel="epsilon: largest change of a pixel", ylabel="accuracy, %")

    if constant is not None:
        keys.append(svg.Key("a constant answer", svg.QUIET, dash=(0, (2, 2))))
    alt = "Accuracy against epsilon, under the strongest attack; see the table of attacks."
    return svg.Drawing("worst", 400, 230, plot, alt, tuple(keys))


def radii(runs: list[Run]) -> list[float]:
    """Return every epsilon above 0 at which a run was attacked."""
    return sorted({entry.epsilon for run in runs for entry in run.attacks if entry.epsilon})


def _draw_curve(axes: "svg.Axes", points: Sequence[tuple[float, schemas.Share]], name: str, **style: Any) -> None:
    """Draw accuracy, if there is any, by rising epsilon with its intervals, and a title on each point."""
    points = sorted((point for point in points if point[1].value is not None), key=lambda point: point[0])
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


def _epsilon_axis(axes: "svg.Axes", epsilons: list[float]) -> None:
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
    name: str, rows: list[schemas.Comparison], measures: Sequence[str], *, columns: int = 1, width: float = 480
) -> svg.Drawing:
    """Draw robust minus standard with intervals: a panel per measure, a row per comparison; accuracy in points."""
    labels = [
        " · ".join(filter(None, (row.model or formatting.DASH, row.defence or formatting.DASH, qualifier)))
        for row, qualifier in zip(rows, formatting.qualifiers(rows), strict=True)
    ]
    names, lines = list(dict.fromkeys(labels)), -(-len(measures) // columns)

    def plot(figure: "svg.Figure") -> None:
        grid = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
        for axes, measure in zip(grid, measures, strict=False):
            scale, unit = (100, ", points") if "accuracy" in measure else (1, "")
            svg.label_rows(axes, names)
            axes.axvline(0, color=svg.INK, lw=1)
            for row, label in zip(rows, labels, strict=True):
                if row.measure == measure and row.difference.value is not None:
                    inside = formatting.interval(row.difference.interval, scale=scale, reveal=True)
                    shown = formatting.signed(scale * row.difference.value) + inside
                    title, y = f"{label}: {shown}, {row.side or row.outcome}", names.index(label)
                    colour = svg.SIDES[row.side]
                    svg.draw_interval(axes, row.difference, y, title, colour, scale=scale, fmt="o", ms=5, lw=1.5)
            reach = max(max(abs(edge) for edge in axes.get_xlim()), 1e-3)
            axes.set_xlim(-reach, reach)
            axes.locator_params(axis="x", nbins=5 if columns == 1 else 3)
            axes.set_title(formatting.measure(measure) + unit, fontsize="small", loc="left")
        for axes in grid[len(measures) :]:
            axes.set_axis_off()
        figure.supxlabel("robust minus standard", fontsize="small")

    alt = f"Forest plot of {name}, robust minus standard; see the table."
    return svg.Drawing(f"comparison-{name}", width, lines * (84 + 24 * len(names)), plot, alt, svg.OUTCOMES)


def accuracy_forests(rows: list[schemas.Comparison]) -> list[svg.Drawing]:
    """Draw the forest plot of each accuracy that was compared."""
    measured = [row for row in rows if not row.method and row.difference.value is not None]
    measures = dict.fromkeys(row.measure for row in measured)
    return [draw_forest(name, [row for row in measured if row.measure == name], [name]) for name in measures]


PROOF_LEGEND = (
    svg.Key("proved", CERTIFIED_COLOUR, "s", line=False),
    svg.Key("open: neither proved nor broken", "#e0b252", "s", line=False),
    svg.Key("broken by an attack", "#eadfdd", "s", line=False),
)


def proof_bars(runs: list[Run]) -> svg.Drawing | None:
    """Draw a bar per run and epsilon, from 0 to clean accuracy; None if nothing was certified."""
    if not (rows := list_proofs(runs)):
        return None

    def plot(figure: "svg.Figure") -> None:
        axes = figure.add_subplot()
        svg.label_rows(axes, [f"{run.label}, {formatting.epsilon(entry.epsilon)}" for run, entry, _ in rows])
        for row, proof in enumerate(rows):
            parts = proof_parts(proof)
            for (start, end), key in zip(parts, PROOF_LEGEND, strict=True):
                drawn = axes.barh(row, end - start, left=start, height=0.56, color=key.colour)
                svg.add_titles(list(drawn), f"{proof[0].label}: {key.text}: {formatting.percent(end - start)}")
            axes.plot([parts[0][1]] * 2, [row - 0.36, row + 0.36], color=svg.INK, lw=1.1)
        svg.format_shares(axes, "x")
        axes.set_xlabel("accuracy, %")

    alt = "Bars of certified accuracy, open accuracy, and accuracy lost to an attack; see the table."
    return svg.Drawing("proved", 720, 70 + 26 * len(rows), plot, alt, PROOF_LEGEND)


def proof_parts(proof: Proof) -> list[tuple[float, float]]:
    """Return start and end of each part of the bar, as in its legend."""
    run, entry, lowest = proof
    certified = entry.accuracy.value or 0.0
    top = max(run.clean.accuracy.value or 0.0, certified)
    broken = top if lowest.accuracy.value is None else max(lowest.accuracy.value, certified)
    return [(0.0, certified), (certified, broken), (broken, top)]


_ATTACKED = svg.attack_style(USUAL_ATTACKS[-1])[0]
RELIABILITY = (
    svg.Key("clean", svg.CLEAN_STYLE[0], "o"),
    svg.Key("clean, scaled", svg.CLEAN_STYLE[0], "s", dash=(0, (4, 2))),
    svg.Key("under the strongest attack", _ATTACKED, "^"),
    svg.Key("under it, scaled", _ATTACKED, "D", dash=(0, (1, 1.2))),
)


def reliability(run: Run, head: Headline) -> svg.Drawing | None:
    """Draw accuracy against confidence, with and without scaling, clean and under the strongest attack."""
    if not (conditions := list_conditions(run.metrics.calibration or schemas.Calibration(), head)):
        return None
    clean = conditions[0][1]
    under = next((part for _, part in conditions[1:] if part.effort == head.strongest), schemas.Calibrated())
    series = [clean.bins, clean.bins_scaled, under.bins, under.bins_scaled]

    def plot(figure: "svg.Figure") -> None:
        import numpy as np

        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        for bins, key in zip(series, RELIABILITY, strict=True):
            points = [(part.confidence, part.accuracy, part.n) for part in bins]
            complete = np.array([point for point in points if None not in point], dtype=float).reshape(-1, 3)
            x, y, counts = complete.T
            sizes = 6 + 90 * counts / max(counts.sum(), 1)
            axes.plot(x, y, color=key.colour, ls=key.dash, lw=1.3, alpha=0.8)
            marks = axes.scatter(x, y, s=sizes, color=key.colour, marker=key.mark, lw=0, clip_on=False)
            texts = (
                f"confidence {formatting.percent(c, 0)}, accuracy {formatting.percent(a, 0)} (n = {n:.0f})"
                for c, a, n in complete
            )
            svg.add_titles(marks, *(f"{key.text}: {text}" for text in texts))
        svg.format_shares(axes, "x", "y")
        svg.set_title(axes, run.label)
        axes.set(xlabel="stated confidence, %", ylabel="accuracy, %")

    alt = f"Reliability diagram of {run.label}; see the table of calibration errors."
    return svg.Drawing(f"reliability-{run.name}", 330, 300, plot, alt, RELIABILITY)


_HISTORY = {
    "train_accuracy": svg.Key("training", "#8793a3"),
    "val_accuracy": svg.Key("validation, clean", svg.CLEAN_STYLE[0]),
    **{
        f"val_{name}_accuracy": svg.Key(f"validation, {ATTACKS[name].label}", svg.attack_style(name)[0], dash=dash)
        for name, dash in zip(USUAL_ATTACKS, ((0, (4, 2)), (0, (1, 1.2))), strict=True)
    },
    "val_certified_accuracy": svg.Key("validation, certified", CERTIFIED_COLOUR, dash=(0, (6, 1.5))),
}


def training_curve(run: Run) -> svg.Drawing | None:
    """Draw accuracy against epoch, from 1, with the best epoch marked; None without a history."""
    import pandas as pd

    if run.history is None or "epoch" not in run.history:
        return None
    table = run.history.apply(pd.to_numeric, errors="coerce")
    drawn = {name: key for name, key in _HISTORY.items() if name in table and table[name].notna().any()}
    if not drawn:
        return None
    best = run.metrics.training.best_epoch

    def plot(figure: "svg.Figure") -> None:
        axes = figure.add_subplot()
        for name, key in drawn.items():
            rows = table[["epoch", name]].dropna()
            (line,) = axes.plot(rows["epoch"] + 1, rows[name], color=key.colour, ls=key.dash, lw=1.7, clip_on=False)
            line.set(marker="o", markersize=4 if len(rows) == 1 else 1.8)
            points = zip(rows["epoch"], rows[name], strict=True)
            svg.add_titles(line, *(f"{key.text}, epoch {x + 1:.0f}: {formatting.percent(y)}" for x, y in points))
        if best is not None:
            axes.axvline(best + 1, color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        svg.format_shares(axes, "y")
        axes.locator_params(axis="x", integer=True)
        if table["epoch"].nunique() == 1:
            axes.set_xticks(table["epoch"] + 1)
        svg.set_title(axes, run.label)
        axes.set(xlabel="epoch", ylabel="accuracy, %")

    alt = f"Accuracy against epoch while training {run.label}."
    return svg.Drawing(f"training-{run.name}", 330, 230, plot, alt, tuple(drawn.values()))


def explanation_dots(runs: list[Run], *, narrow: bool = False) -> svg.Drawing | None:
    """Draw infection energy, IoU and hit rate of each run's first method with intervals; `narrow`: in one column."""
    shown = [run for run in runs if run.metrics.saliency]
    names = ("infection_energy", "infection_iou", "pointing_hit_rate")
    if not any(run.main_saliency.figure(name).value is not None for run in shown for name in names):
        return None

    def plot(figure: "svg.Figure") -> None:
        shape = (len(names), 1) if narrow else (1, len(names))
        for axes, name in zip(figure.subplots(*shape, sharey=True), names, strict=True):
            svg.label_rows(axes, [run.label for run in shown])
            axes.set_title(formatting.measure(name), fontsize="medium", loc="left")
            for row, run in enumerate(shown):
                measure = run.main_saliency.figure(name)
                if measure.chance is not None:
                    axes.plot([measure.chance] * 2, [row - 0.34, row + 0.34], color=svg.INK, lw=1.6)
                text = formatting.decimal(measure.value) + formatting.interval(measure.interval)
                title = f"{run.label}: {text}, chance {formatting.decimal(measure.chance)}"
                svg.draw_interval(axes, measure, row, title, svg.defence_colour(run.defence), fmt="o", ms=5.5, lw=1.5)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=3)

    alt = f"Dot plot of localisation and chance for {len(shown)} runs; see the table."
    height = (74 + 24 * len(shown)) * (len(names) if narrow else 1)
    keys = [svg.Key(name, svg.defence_colour(name), "o") for name in list_defences(shown)]
    chance = svg.Key("chance", svg.INK, "|", line=False)
    return svg.Drawing("localisation", 760, height, plot, alt, (*keys, chance))


_SHOWN = tuple(measure.name for measure in MEASURES.values() if measure.charted)


def saliency_forests(rows: list[schemas.Comparison], *, columns: int = 4) -> dict[str, svg.Drawing]:
    """Return the forest plot of each saliency method by its name, with `columns` panels a row."""
    results = {}
    for method in dict.fromkeys(row.method for row in rows if row.method):
        compared = [row for row in rows if row.method == method and row.difference.value is not None]
        if measures := [name for name in _SHOWN if any(row.measure == name for row in compared)]:
            drawing = draw_forest(method, compared, measures, columns=columns, width=760)
            results[formatting.method(method)] = drawing
    return results


def sanity(runs: list[Run]) -> list[svg.Drawing]:
    """Draw for each run the similarity with the trained map as layers become random from the logits down."""
    tested = [(run, {m: d for _, m, d in documents([run], baseline_maps=False) if d.sanity}) for run in runs]
    return [_cascade(run, methods) for run, methods in tested if methods]


def _cascade(run: Run, methods: dict[str, schemas.SaliencyDocument]) -> svg.Drawing:
    dashes = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
    parts = [formatting.part(stage.part) for stage in next(iter(methods.values())).sanity]

    def plot(figure: "svg.Figure") -> None:
        axes = figure.add_subplot()
        for (name, document), dash in zip(methods.items(), dashes, strict=False):
            values = [stage.figure("ssim").value for stage in document.sanity]
            heights = [1.0, *(float("nan") if v is None else v for v in values)]
            axes.plot(range(len(heights)), heights, color=svg.defence_colour(run.defence), ls=dash, marker="o", ms=3.5)
            axes.annotate(formatting.method(name), (len(heights) - 1, heights[-1]), fontsize="small", color=svg.INK)
        axes.set_xticks(range(len(parts) + 1), ["trained", *parts], rotation=45, ha="right", fontsize="small")
        axes.axhline(0, color=svg.RULE, lw=0.7)
        axes.set_ylim(-0.1, 1.05)
        svg.set_title(axes, run.label)
        axes.set_ylabel("SSIM with the trained map")

    alt = f"SSIM of the heatmaps of {run.label} as its layers become random; the table gives the ends."
    return svg.Drawing(f"sanity-{run.name}", 330, 250, plot, alt)


def draw_curves(clean: schemas.OperatingPoint, attacked: schemas.OperatingPoint | None) -> svg.Drawing:
    """Draw both curves of one class or finding with intervals, clean and, if measured, attacked."""
    shown = [(clean, svg.CLEAN_STYLE[0])]
    shown += [(attacked, svg.attack_style(attacked.attack)[0])] if attacked else []

    def plot(figure: "svg.Figure") -> None:
        left, right = figure.subplots(1, 2)
        for point, colour in shown:
            _curve(left, point.roc, colour, formatting.condition(point))
            _curve(right, point.precision_recall, colour, formatting.condition(point))
            if point.sensitivity.value is not None and point.specificity.value is not None:
                left.scatter([1 - point.specificity.value], [point.sensitivity.value], color=colour, s=36, zorder=3)
        left.plot([0, 1], [0, 1], color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        titles = ((left, "1 - specificity, %", "sensitivity, %"), (right, "recall, %", "precision, %"))
        for axes, across, along in titles:
            svg.format_shares(axes, "x", "y")
            axes.set(xlabel=across, ylabel=along)
        svg.set_title(left, clean.finding)
        left.legend(loc="lower right", frameon=False, fontsize="small")

    alt = f"ROC and precision-recall curves of {clean.finding}; see the table."
    return svg.Drawing(f"operating-{clean.finding}", 620, 290, plot, alt)


def _curve(axes: "svg.Axes", curve: schemas.Curve, colour: str, name: str) -> None:
    points = [p for p in zip(curve.x, curve.y, curve.low, curve.high, strict=False) if None not in p]
    if not points:
        return
    x, y, low, high = ([float(v or 0.0) for v in column] for column in zip(*points, strict=True))
    (line,) = axes.plot(x, y, color=colour, lw=1.4, label=name)
    svg.add_titles(line, name)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
