"""Write results/twenty-one-covidqu-midi.{md,csv}: the 21 networks, as far as they were carried out.

    trustcxr study twenty-one --data covidqu-midi --out out/twenty-one --kept results/twenty-one
    python -m benchmarks.findings.twenty_one [STUDY]

The study takes a day of one core, and may be stopped and gone on with, also on another machine: a few small files of
each finished run stand in results/twenty-one/. Page and table are written from there alone, at any time, with what is
missing by name. STUDY: one that was begun without `--kept`, whose finished runs are put there first. No number is
typed by hand.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.findings import notes
from trustcxr.about import NOTICE
from trustcxr.recipes.run import RunRecipe
from trustcxr.report import markdown, words
from trustcxr.report.rows import write_figures
from trustcxr.report.study_folder import Run
from trustcxr.results import documents, files, folders, stretches
from trustcxr.results.documents import Classification, CostDocument, RunDocument, StudyPlan, TrainingDocument
from trustcxr.study import finished, planned, standing
from trustcxr.study.choice import ranked
from trustcxr.study.costs import COST_FILE, kind

RESULTS = Path(__file__).resolve().parents[2] / "results"
KEPT = RESULTS / "twenty-one"
PAGE = RESULTS / "twenty-one-covidqu-midi.md"
EPSILON = 0.02
NEAR = 0.15  # of accuracy above a constant answer: less is said to be little
_PAPER = (
    "Of arXiv 2311.14227 two figures could be traced, each the best of its 21 networks at 224 pixels on all of "
    "COVID-QU-Ex from ImageNet's weights (97.03 % accuracy; 95.03 % under FGSM at 0.02 after FGSM training, by "
    "EfficientNetV2S), and not the order of the 21, nor which six it took on. So whether its best six are ours is not "
    "answered here. Networks from random weights after so few epochs say nothing of an order after convergence."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?")
    given = parser.parse_args()
    if given.study is not None:
        print(f"put into {KEPT}: {', '.join(finished.keep(given.study, KEPT)) or 'nothing new'}")
        if (given.study / COST_FILE).is_file():
            files.write_json(KEPT / COST_FILE, documents.read(CostDocument, given.study / COST_FILE))
    PAGE.write_text("\n".join(lines(KEPT)) + "\n", encoding="utf-8")
    print(PAGE)
    print(write_figures(list(with_validation(KEPT)), PAGE.with_suffix(".csv")))


def lines(kept: Path) -> Iterator[str]:
    """The whole page."""
    recipe, plan = planned.recipe_of(kept), standing.status(kept)
    planned_runs = planned.runs(recipe, kept)
    runs = [read(kept, run) for run in planned_runs.certain if (kept / "runs" / run.name).is_dir()]
    in_all = len(planned_runs.certain) + planned_runs.to_choose * len(recipe.defences) * len(recipe.seeds)
    carried_out = f"all {in_all} runs" if len(runs) == in_all else f"{len(runs)} of {in_all} runs so far"
    yield from (f"# {recipe.title}: {carried_out}", "")
    if kept == KEPT and runs:
        yield from (notes.note(PAGE.name, notes.openings()), "")
    yield from (
        "`trustcxr study twenty-one --data covidqu-midi --out out/twenty-one --kept results/twenty-one`, then "
        f"`python -m benchmarks.findings.twenty_one`. Every figure with its interval, those of validation "
        f"too, stands in `{PAGE.with_suffix('.csv').name}`. {NOTICE}",
        "",
        "`trustcxr verify` cannot compute these figures again: of a finished run a few small files are kept here, with "
        "what was found and its intervals, and no predictions. It can of those runs that were tested where the study "
        "itself is, in `out/twenty-one`.",
        "",
    )
    if not runs:
        yield from ("**No run is finished yet, and nothing can be read off this page but what it will cost.**", "")
    else:
        first = runs[0].metrics
        yield from (
            f"{words.count(first.clean.n)} {first.split} images of covidqu-midi, {recipe.data.size} pixels, one "
            "seed; percent of images answered rightly, with 95 % intervals over "
            f"{words.count(first.clean.groups)} patients or groups of images. "
            f"A constant answer has {words.hundred(first.clean.constant_answer)}.",
            "",
        )
    missing = [one.run for one in plan.runs if one.state not in ("done", "if chosen")]
    robust = f", and {planned_runs.to_choose} robust ones of networks that are not chosen yet" * bool(plan.to_choose)
    if missing or robust:
        yield from (f"**Missing**: {', '.join(missing) or 'no standard run'}{robust}.", "")
    yield from short_of(kept, recipe.training.epochs, [run for run in planned_runs.certain if _is_done(kept, run)])
    yield from on_validation(kept, planned_runs)
    if runs:
        yield from ("## On Test", "", *markdown.robustness(runs, EPSILON), "")
        yield from (
            "Minutes: of training by the clock, beside other work that stopped some of it for a time; the last table "
            f"has processor minutes. Attacks at epsilon {EPSILON:g}. Mean: over the corruptions of the recipe at "
            "severity 3. Failing gradients: the verdict, whose reason stands in each run's metrics.json. Lungs hidden: "
            "of all ways to hide them the one that leaves the most.",
            "",
            *markdown.localisation(runs),
            *markdown.removed_lesions(runs),
        )
    yield from ("## The paper's order", "", _PAPER, "", *cost(kept, planned_runs.certain, plan))


def read(kept: Path, run: RunRecipe) -> Run:
    """A finished run, as the report's tables take it."""
    folder = kept / "runs" / run.name
    document = documents.read(RunDocument, folder / folders.METRICS_FILE)
    document.training = documents.read(TrainingDocument, folder / folders.TRAINING_FILE)
    # By other fills and controls the runs that were tested first were asked otherwise than the rest.
    alike = [each for each in document.lesions if (each.fill, each.control) == ("grey", "lung")]
    document.lesions = [each.model_copy(update={"by_size": []}) for each in alike]
    return Run(document, folder, [])


def with_validation(kept: Path) -> Iterator[Run]:
    """The finished runs, each by its figures on test, then by those on validation."""
    for run in planned.runs(planned.recipe_of(kept), kept).certain:
        if _is_done(kept, run):
            yield read(kept, run)
            yield Run(documents.read(RunDocument, _validated(kept, run)), kept / "runs" / run.name, [])


def _is_done(kept: Path, run: RunRecipe) -> bool:
    return finished.is_finished(kept / "runs" / run.name)


def short_of(kept: Path, epochs: int, runs: Sequence[RunRecipe]) -> Iterator[str]:
    """How far from convergence the runs are, as their own curves say."""
    rose = 0
    for run in runs:
        curve = pd.read_csv(kept / "runs" / run.name / folders.HISTORY_FILE)["val_accuracy"]
        rose += int(curve.idxmax() == len(curve) - 1 and len(curve) == epochs)
    said = f" Of {len(runs)} finished runs {rose} were best on validation in their very last epoch." if runs else ""
    yield from (
        f"**Short of convergence**: every network has at most {epochs} epochs from random weights, as many as two "
        f"cores can pay for; networks that learn slowly are shown below their worth.{said}",
        "",
    )


def on_validation(kept: Path, runs: planned.Planned) -> Iterator[str]:
    """The networks by validation, with intervals, as far as they are there; who is chosen once all are."""
    there = [run for run in runs.certain if run.defence == type(run.defence)() and _is_done(kept, run)]
    if not there:
        return
    recipe = planned.recipe_of(kept)
    said = {run.model.called: documents.read(RunDocument, _validated(kept, run)).clean for run in there}
    order = ranked(recipe.selection, [(run, kept / "runs" / run.name) for run in there], ())
    whole = not runs.to_choose
    rows = [
        [
            row.model,
            markdown.percent(said[row.model].accuracy),
            markdown.percent(said[row.model].balanced_accuracy),
            ("yes" if row.chosen else "no") if whole else "not yet known",
        ]
        for row in order
    ]
    yield from ("## On validation", "", *near_constant({row.model: said[row.model] for row in order}))
    yield from (*markdown.table(["network", "accuracy", "balanced", "chosen"], rows), "")
    yield from arithmetic(kept, there)
    if whole:
        least = min(row.value or 0.0 for row in order if row.chosen)
        near = [
            row.model
            for row in order
            if not row.chosen and (ends := said[row.model].accuracy.interval) and ends[1] >= least
        ]
        yield from (
            f"Passed over, though their interval reaches the last that was chosen: {', '.join(near) or 'none'}.",
            "",
        )


def arithmetic(kept: Path, runs: Sequence[RunRecipe]) -> Iterator[str]:
    """In what precision the networks were trained, where that is not one and the same."""
    used: dict[str, list[str]] = {}
    for run in runs:
        training = documents.read(TrainingDocument, kept / "runs" / run.name / folders.TRAINING_FILE)
        used.setdefault(training.precision or "not noted", []).append(run.model.called)
    if len(used) > 1:
        told = "; ".join(f"in {name} {', '.join(models)}" for name, models in used.items())
        yield from (
            f"**This order, and the choice, mix two arithmetics**, as the machines that trained them could: {told}. "
            "What that alone would move was not measured.",
            "",
        )


def near_constant(said: Mapping[str, Classification]) -> Iterator[str]:
    """How little was learnt, of each network by its figures on validation."""
    constant = max((clean.constant_answer or 0.0 for clean in said.values()), default=0.0)
    near = [name for name, clean in said.items() if (clean.accuracy.value or 0.0) < constant + NEAR]
    yield from (
        f"**A constant answer has {words.hundred(constant)}. Less than {100 * NEAR:g} points above it "
        f"{'is' if len(near) == 1 else 'are'} {len(near)} of {len(said)}: {', '.join(near) or 'none'}**; what a map or "
        "an attack says of a network that has learnt so little is of little worth.",
        "",
    )


def _validated(kept: Path, run: RunRecipe) -> Path:
    return kept / "runs" / run.name / folders.VALIDATED_FILE


def cost(kept: Path, runs: Sequence[RunRecipe], plan: StudyPlan) -> Iterator[str]:
    """A row a run: what it took, where; what a step was timed at before."""
    rows, costs = [], plan.costs
    for run in runs:
        way = costs.ways.get(kind(run)) if costs else None
        step = "" if way is None or way.step is None else f"{way.step:.2f}"
        if not _is_done(kept, run):
            rows.append([run.name, step, "", "", "", "", ""])
            continue
        content = files.read_yaml(kept / "runs" / run.name / folders.RUN_FILE)
        training = documents.read(TrainingDocument, kept / "runs" / run.name / folders.TRAINING_FILE)
        spent = "" if training.processor_seconds is None else f"{training.processor_seconds / 60:.1f}"
        came = (", then ".join(found) for found in (stretches.machines(content), stretches.commits(content)))
        rows.append([run.name, step, str(training.epochs), spent, training.precision or "", *came])
    yield from ("## What it costs", "")
    if plan.least is not None and plan.most is not None and any(not _is_done(kept, run) for run in runs):
        hours = " to ".join(dict.fromkeys(f"{seconds / 3600:.0f}" for seconds in (plan.least, plan.most)))
        yield from (f"What is missing takes at most {hours} hours of one core, by which networks are chosen.", "")
    if costs is not None:
        yield from (
            f"A step: seconds of one core for {costs.ways[kind(runs[0])].batch} images, timed beforehand by `trustcxr "
            "study twenty-one --dry-run` with random weights, on noise. Training: processor minutes. Of that timing: "
            f"{'; '.join(costs.notes)}.",
            "",
        )
    yield from markdown.table(["run", "a step", "epochs", "training", "precision", "processor", "commit"], rows)


if __name__ == "__main__":
    main()
