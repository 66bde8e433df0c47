"""The tables of a study as Markdown, with every figure as CSV beside them: what a repository or a paper takes in.

No number is made here: each is read from study.json and the documents beside it, with its interval and its count.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trustcxr.about import NOTICE
from trustcxr.catalogue import LUNGS_HIDDEN
from trustcxr.errors import UserError
from trustcxr.recipes.study import StudyRecipe, load_study, shipped, untracked, with_seeds
from trustcxr.recipes.validation import validate
from trustcxr.report import alarms, answers, methods, ranking, rows, words
from trustcxr.report.figures.accuracy import radii
from trustcxr.report.markdown_cells import cell_of, decimal, percent, row, table
from trustcxr.report.markdown_maps import MEASURES, Beyond, localisation, removed_lesions, what_is_added
from trustcxr.report.study_folder import Run, StudyFolder, read
from trustcxr.report.tables import seeds
from trustcxr.report.tables.certified import BAR, bar, gaps
from trustcxr.results import files
from trustcxr.results.disk import as_typed
from trustcxr.results.documents import (
    Accuracy,
    CertifiedResult,
    DataCheck,
    Drop,
    StudyDocument,
)
from trustcxr.results.folders import STUDY_FILE
from trustcxr.results.tables import CLEAN

OTHER_FILM = "lungs_on_another_film"
__all__ = [
    "MEASURES",
    "Beyond",
    "compared",
    "decimal",
    "localisation",
    "percent",
    "removed_lesions",
    "render",
    "row",
    "table",
    "write",
]
_REFIT = (
    "Epochs: those on the training images, in which validation chose the best one, + those of a training anew on "
    "training and validation images together, to the epoch chosen. What is tested is the latter; what is chosen or "
    "fitted on validation is of the former. Minutes are of both."
)


def write(
    study_folder: Path, *, beyond: Beyond | None = None, note: str = "", out: Path | None = None, name: str = "report"
) -> list[Path]:
    """Write NAME.md, NAME.csv (every figure) and, where runs were compared, NAME-comparisons.csv; returns their paths.

    They go into the study's folder, or into `out`. `beyond`: of each run what its CAMs show beyond the activation of
    their own layer. `note`: what the figures do not tell, such as how the study was run.
    Raises UserError where the folder holds no readable study.json.
    """
    found, folder = read(Path(study_folder)), Path(out or study_folder)
    written = [rows.write_figures(found.runs, folder / f"{name}.csv")]
    if found.study.comparisons:
        written.append(rows.write_comparisons(found.study.comparisons, folder / f"{name}-comparisons.csv"))
    page = folder / f"{name}.md"
    with files.replacing(page) as temporary:
        temporary.write_text(render(found, beyond or {}, note), encoding="utf-8")
    return [page, *written]


def render(found: StudyFolder, beyond: Beyond | None = None, note: str = "") -> str:
    """The page as text. The same folder gives the same text."""
    study, runs = found.study, found.runs
    parts = [*_opening(found, runs), *([note, ""] if note else [])]
    if not runs:
        return "\n".join([*parts, "This study holds no tested run yet.", ""])
    epsilons = radii(runs)
    largest = max((e for e in epsilons if any(run.strongest(e).attack for run in runs)), default=None)
    parts += _front(found, runs)
    parts += [*robustness(runs, largest), "", *_reading(study, runs, largest)]
    for epsilon in (e for e in epsilons if e != largest):
        parts += [f"## Epsilon {epsilon:g}", "", *at_epsilon(runs, epsilon), ""]
    parts += over_seeds(study)
    for name in dict.fromkeys(name for run in runs for name in run.evaluations):
        parts += [f"## Data from elsewhere: {name}", "", *elsewhere(runs, name, largest), ""]
    parts += [*localisation(runs), *removed_lesions(runs), *what_is_added(runs, beyond or {}), *compared(study)]
    for section in (list(_checked(found.check)), list(_methods(study, runs))):
        parts += [*([""] if parts[-1] else []), *section]
    return "\n".join(parts).rstrip("\n") + "\n"


# --- parts of the page -----------------------------------------------------------------------------------------------


def _opening(found: StudyFolder, runs: Sequence[Run]) -> list[str]:
    """Title, how to make the page again, and on what it rests."""
    study = found.study
    name, data, hardware = study.study or found.path.name, study.data, study.hardware
    folder = as_typed(found.path.name)
    command = _command(study, f"--data {as_typed(data.root_name or 'DATA')} --out {folder}")
    lines = [
        f"# {study.title or name}",
        "",
        f"{command}, then `trustcxr report {folder} --markdown`. Every figure is in the CSV file beside it.",
        "",
    ]
    if not runs:
        return lines
    first, seeds = runs[0], {run.metrics.seed for run in runs}
    constant = ranking.shared_constant_answer(list(runs))
    always = "" if constant is None else f"A constant answer has {words.hundred(constant)}. "
    return [
        *lines,
        f"{words.count(first.clean.n)} {first.metrics.split} images of {data.root_name or words.DASH}, "
        f"{words.count(data.size)} pixels; {words.plural(len(seeds), 'seed')}; percent of images answered rightly, "
        f"with 95 % intervals over {words.count(first.clean.groups)} patients or groups of images. {always}Epsilon is "
        f"L-infinity in pixel space, but for L2 attacks. Training time in minutes on {words.count(hardware.cores)} "
        f"cores ({hardware.processor or words.DASH}). {study.notice or NOTICE}",
        "",
    ]


def _command(study: StudyDocument, where: str) -> str:
    """How the study is carried out again: by a recipe of the package, or by its own where that is not the same."""
    own = f"`trustcxr study RECIPE.yaml {where}` with what study.yaml says below `recipe` as RECIPE.yaml"
    if study.study not in shipped():
        return own
    try:
        recipe = untracked(validate(StudyRecipe, study.recipe, STUDY_FILE))
    except UserError:
        return own
    usual, count = load_study(study.study), len(recipe.seeds)
    if recipe == usual:
        return f"`trustcxr study {study.study} {where}`"
    return f"`trustcxr study {study.study} --seeds {count} {where}`" if recipe == with_seeds(usual, count) else own


def _front(found: StudyFolder, runs: list[Run]) -> Iterator[str]:
    """As the page begins: what was asked, the alarms with the runs that they concern, the answer in three sentences."""
    head, findings = ranking.headline(found.study, runs), alarms.find(found, runs)
    yield from (answers.asked(runs, head), "")
    for group in findings.groups:
        yield f"- **{group.title}**: {', '.join(group.who) or words.plural(len(group.lines), 'alarm')}"
    yield from ([] if findings.groups else ["No alarm was raised."])
    yield ""
    yield from (" ".join(answers.sentences(found.study, runs, head)), "")


def robustness(runs: Sequence[Run], epsilon: float | None) -> list[str]:
    """One line a run: clean, attacks at one epsilon, what is proved there, corruptions, views, what it cost."""
    attacks, proved = ranking.attacks_at(runs, epsilon), any(_proof(run, epsilon) for run in runs)
    head = ["run", "epochs", "minutes", "clean", *attacks.values()]
    head += ["certified", f"from proof to attack ({BAR})"] if proved else []
    head += ["failing gradients", "corruptions, mean", "lungs hidden, at worst", words.measure(OTHER_FILM)]
    lines = []
    for run in runs:
        training, mean = run.metrics.training, run.metrics.corruptions_mean
        spent = "" if training.seconds is None else f"{training.seconds / 60:.1f}"
        epochs = [training.epochs, training.refit.epochs if training.refit else None]
        proof = _proof(run, epsilon)
        lines.append(
            [
                run.name,
                " + ".join(str(count) for count in epochs if count is not None),
                spent,
                percent(run.clean.accuracy),
                *(percent(run.attacked(name, epsilon).accuracy) for name in attacks),
                *([percent(proof.accuracy) if proof else "", _bar(run, epsilon)] if proved else []),
                _verdict(run),
                percent(mean.accuracy) if mean else "",
                _without_lungs(run),
                percent(run.metrics.shortcuts.get(OTHER_FILM, Accuracy()).accuracy),
            ]
        )
    return table(head, lines)


def _proof(run: Run, epsilon: float | None) -> CertifiedResult | None:
    return next((entry for entry in run.metrics.certified if entry.at(epsilon)), None)


def _bar(run: Run, epsilon: float | None) -> str:
    """Proof and attack at one epsilon as one bar of text; empty where nothing was proved there."""
    found = [gap for gap in gaps([run]) if gap.entry.at(epsilon)]
    return bar(found[0].certified, found[0].attacked, run.clean.accuracy.value or found[0].certified) if found else ""


def _verdict(run: Run) -> str:
    verdict = run.metrics.masking
    if verdict is None:
        return ""
    unknown = "says nothing" if verdict.looked_for else "not looked for"
    return {True: "yes", False: "no", None: unknown}[verdict.masked]


def _without_lungs(run: Run) -> str:
    """Of the ways to hide the lungs the one that leaves the most: whoever reads the lungs would lose all of it."""
    hidden = {name: part for name, part in run.metrics.shortcuts.items() if name in LUNGS_HIDDEN}
    known = [(part.accuracy.value, name) for name, part in hidden.items() if part.accuracy.value is not None]
    if not known:
        return ""
    name = max(known)[1]
    return f"{percent(hidden[name].accuracy)} ({words.measure(name)})"


def _reading(study: StudyDocument, runs: Sequence[Run], epsilon: float | None) -> Iterator[str]:
    """What must be known to read the first table."""
    if any(run.metrics.training.refit for run in runs):
        yield from (_REFIT, "")
    attacked = "No attack was tried." if epsilon is None else f"Attacks at epsilon {epsilon:g}."
    yield (
        f"{attacked} An empty cell was not tried. Mean: over all corruptions and severities. Failing gradients: the "
        "verdict, whose reason stands in each run's metrics.json. Lungs hidden: of all ways to hide them the one that "
        "leaves the most."
    )
    yield ""
    if missing := list(not_tried(study, runs)):
        yield f"Of the recipe these were not tried; the command above tries them: {'; '.join(missing)}."
        yield ""


def not_tried(study: StudyDocument, runs: Sequence[Run]) -> Iterator[str]:
    """For each run the attacks of the recipe that it was not tested with."""
    asked = study.recipe.get("evaluation")
    attacks = asked.get("attacks") if isinstance(asked, dict) else None
    wanted = [a for a in attacks if isinstance(a, dict) and a.get("name")] if isinstance(attacks, list) else []
    for run in runs:
        for attack in wanted:
            epsilons = attack.get("epsilons")
            radii_ = [e for e in map(words.finite, epsilons if isinstance(epsilons, list) else ()) if e is not None]
            if lacks := [f"{e:g}" for e in radii_ if not run.attacked(str(attack["name"]), e).attack]:
                yield f"{run.name}: {attack['name']} at {', '.join(lacks)}"


def at_epsilon(runs: Sequence[Run], epsilon: float) -> list[str]:
    """One line a run: the attacks at one epsilon."""
    attacks = ranking.attacks_at(runs, epsilon)
    lines = [[run.name, *(percent(run.attacked(name, epsilon).accuracy) for name in attacks)] for run in runs]
    return table(["run", *attacks.values()], lines)


def over_seeds(study: StudyDocument) -> list[str]:
    """One line a figure of a way of training with several seeds: mean, standard deviation, lowest and highest."""
    found = seeds.over_seeds(study)
    if found is None:
        return []
    return ["## Over seeds", "", *table(found.header, [[cell_of(cell) for cell in line] for line in found.rows]), ""]


def elsewhere(runs: Sequence[Run], name: str, epsilon: float | None) -> list[str]:
    """One line a run: accuracy on other data, how far it fell, and what attacks leave of it there."""
    there = {run.name: Run(run.evaluations[name], run.folder, []) for run in runs if name in run.evaluations}
    attacks = ranking.attacks_at(list(there.values()), epsilon)
    head = ["run", "clean", "n", "drop from internal"]
    lines = []
    for own, run in there.items():
        drop = next((d for d in run.metrics.drop_from_internal if d.attack == CLEAN), Drop())
        attacked = (percent(run.attacked(attack, epsilon).accuracy) for attack in attacks)
        lines.append([own, percent(run.clean.accuracy), words.count(run.clean.n), percent(drop.drop), *attacked])
    return table(head + [f"{said} {words.epsilon(epsilon)}" for said in attacks.values()], lines)


def _checked(check: DataCheck | None) -> Iterator[str]:
    """What was found wrong with the data; nothing where nobody looked."""
    if check is not None:
        yield from ("## Are the data sound?", "", check.verdict, "")
        found = [[each.severity, each.text, words.count(each.count)] for each in check.findings]
        yield from [*table(["kind", "what was found", "how many"], found), ""] if found else []


def _methods(study: StudyDocument, runs: Sequence[Run]) -> Iterator[str]:
    """A methods section, a paragraph a part."""
    yield from ("## Methods", "")
    for point in methods.paragraphs(study, list(runs)):
        yield from (f"**{point.lead}.** {point.text}", "")


def compared(study: StudyDocument) -> Iterator[str]:
    """Every comparison of a robust run, or one with another background, with its standard run: a sentence each."""
    groups: dict[str, list[str]] = {}
    for each in study.comparisons:
        if each.verdict and (each.method is None or each.measure in MEASURES):
            who = f"{each.model}: {each.background} background, {each.label or each.defence}, against standard"
            groups.setdefault(who, []).append(f"- {each.verdict}")
    if not groups:
        return
    yield from ("## Standard against the others, image by image", "")
    yield "Differences with 95 % intervals; p-values corrected for all comparisons of saliency, or of accuracy (Holm)."
    for who, sentences in groups.items():
        yield from ("", f"### {who}", "", *sentences)
