"""Where a study stands, from its folder alone: which runs are done, running, failed, and the work that is left."""

from collections.abc import Iterable
from pathlib import Path

from trustcxr.about import NOTICE
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe
from trustcxr.results import documents, folders, locks
from trustcxr.results.documents import CostDocument, RunPlan, StudyDocument, StudyPlan
from trustcxr.study import planned
from trustcxr.study.costs import Known


def status(study: Path) -> StudyPlan:
    """Every run of a study that was begun, as its files say it now; UserError where there is no study."""
    return plan(planned.recipe_of(study), study)


def plan(recipe: StudyRecipe, study: Path | None, costs: CostDocument | None = None) -> StudyPlan:
    """Every run of a recipe; `study` is its folder where there is one, `costs` what was measured just now."""
    runs = planned.runs(recipe, study)
    described = _described(study)
    known = Known(study, [*runs.certain, *runs.open], costs)
    certain = [_planned(run, (study or Path("nowhere")) / "runs" / run.name, described, known) for run in runs.certain]
    open_ = [_planned(run, (study or Path("nowhere")) / "runs" / run.name, described, known) for run in runs.open]
    for one in open_:
        one.state = "if chosen"
    least, most = _sums(recipe, certain, open_, runs.to_choose)
    return StudyPlan(
        study=recipe.name,
        folder="" if study is None else str(study),
        notice=NOTICE,
        holder=(locks.holder(study) or "") if study is not None else "",
        at_once=sum(one.state == "running" for one in certain),
        to_choose=runs.to_choose,
        runs=[*certain, *open_],
        least=least,
        most=most,
        unmeasured=[one.run for one in (*certain, *open_) if one.state != "done" and one.left is None],
        costs=known.costs,
    )


def _planned(run: RunRecipe, folder: Path, described: set[str], known: Known) -> RunPlan:
    found = planned.standing(run, folder, described=run.name in described)
    if found.state != "done":
        found.seconds = known.left(found, run)
    return found


def _described(study: Path | None) -> set[str]:
    """The runs whose figures stand in study.json."""
    path = study / folders.STUDY_RESULTS if study is not None else None
    document = documents.read_if_there(StudyDocument, path) if path is not None else None
    return {run.run for run in document.runs} if document is not None else set()


def _sums(
    recipe: StudyRecipe, certain: Iterable[RunPlan], open_: Iterable[RunPlan], to_choose: int
) -> tuple[float | None, float | None]:
    """Seconds left if the cheapest networks are chosen, and if the dearest are; None where a run was not measured."""
    sure = [one.left for one in certain if one.state != "done"]
    by_model: dict[str, list[float | None]] = {}
    for one in open_:
        by_model.setdefault(one.model, []).append(one.left)
    known = [part for part in sure if part is not None]
    chosen = [sum(part for part in parts if part is not None) for parts in by_model.values()]
    every = [*sure, *(part for parts in by_model.values() for part in parts)]
    if None in every:
        return None, None
    order = sorted(chosen)
    return sum(known) + sum(order[:to_choose]), sum(known) + sum(order[len(order) - to_choose :] if to_choose else [])
