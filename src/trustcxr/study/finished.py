"""Runs that were finished elsewhere: their figures go on counting where their weights and tables are gone.

Of such a run there are a few small files, a study in small: run.yaml, training.json, history.csv, metrics.json, and
validation.json, the figures that a network is chosen by in the place of their table. Nothing more can be measured of
it; what a study says of it is what was written when it was whole.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from trustcxr.console import say
from trustcxr.errors import CannotWrite, UserError
from trustcxr.evaluation import metrics
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe, drops, grows, run_recipe, untracked
from trustcxr.recipes.training import DefenceRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import documents, files, folders
from trustcxr.results.documents import VERSION, RunDocument
from trustcxr.results.tables import FILMS, logits_of

_PARTS = ("by_source", "by_group", "by_lesion", "correct")  # figures of parts of the films, most of a metrics.json
_SMALL = (folders.RUN_FILE, folders.TRAINING_FILE, folders.HISTORY_FILE, folders.METRICS_FILE)


def is_finished(run: Path) -> bool:
    """Whether a run's figures are all that is here of it."""
    return (run / folders.VALIDATED_FILE).is_file() and not (run / folders.WEIGHTS_FILE).is_file()


def left_out(study: Path, before: StudyRecipe, now: StudyRecipe) -> list[str]:
    """The standard runs of the networks that a recipe leaves out of the study of before, none of them trained.

    UserError where a run of theirs was trained to the end: a network is not left out for what it did.
    """
    ways, dropped = (DefenceRecipe(), *before.defences), drops(before, now)
    names = [run_recipe(before, m, way, seed).name for way in ways for m in dropped for seed in before.seeds]
    trained = [name for name in names if (study / "runs" / name / folders.TRAINING_FILE).is_file()]
    if trained:
        raise UserError(f"{study}: {', '.join(trained)}: trained, and so counted in this study; choose another --out")
    return names[: len(dropped) * len(before.seeds)]


def is_validated(run: Path) -> bool:
    """Whether a network can be chosen, or passed over, by what this run does on validation."""
    return (run / folders.VALIDATION_FILE).is_file() or is_finished(run)


def check(run: Path, recipe: RunRecipe) -> None:
    """UserError where the run that was finished elsewhere is another than `recipe` says."""
    path = run / folders.RUN_FILE
    if not recipe.same_as(validate(RunRecipe, files.part(files.read_yaml(path), "recipe"), str(path))):
        raise UserError(f"{run}: holds another run; choose another --out")


def keep(study: Path, place: Path, told: set[str] | None = None) -> list[str]:
    """Put the small files of every finished run of a study into `place`, where it has no such; names of these runs.

    Of metrics.json the figures of all films are kept, to six digits, and not those of parts of them. A run of which a
    file is missing or damaged is left out, which is said once for each cause in `told`.
    What `place` holds of another study, or of other films, is refused with a UserError.
    """
    content = folders.read_study(study)
    recipe = _recipe(content, study)
    refuse_another(place, recipe, content)
    there = (place / folders.STUDY_FILE).is_file()
    if not there or untracked(_recipe(folders.read_study(place), place)) != untracked(recipe):
        files.write_yaml(place / folders.STUDY_FILE, content)
    found = []
    for metrics_file in sorted(study.glob(f"runs/*/{folders.METRICS_FILE}")):
        run, kept = metrics_file.parent, place / "runs" / metrics_file.parent.name
        if not (run / folders.VALIDATION_FILE).is_file():
            continue
        if (why := _lost(run, folders.VALIDATION_FILE)) is not None:
            _say_once(f"{run}: {why}, so the run is not kept in {place} yet", told)
            continue
        small = _in_small(documents.read(RunDocument, metrics_file).plain())
        said = json.dumps(small, separators=(",", ":"), allow_nan=False)
        if not _is_kept(run, kept, said):
            with suppress(OSError):  # without it nothing here is taken, until all of it is of one measurement
                (kept / folders.METRICS_FILE).unlink(missing_ok=True)
            files.write_json(kept / folders.VALIDATED_FILE, _validated(run))
            for name in _SMALL[:-1]:
                with files.replacing(kept / name) as temporary:
                    shutil.copyfile(run / name, temporary)
            with files.replacing(kept / folders.METRICS_FILE) as temporary:  # last: where it is, the others are
                temporary.write_text(said + "\n", encoding="utf-8")
            found.append(run.name)
    return found


def keep_if_possible(study: Path, place: Path, told: set[str]) -> None:
    """As `keep`; that the disk of `place` refuses is said once, and no reason to stop a study that is on another."""
    try:
        keep(study, place, told)
    except CannotWrite as problem:
        if "disk" not in told:  # once, however much is free by then
            say(f"finished runs are not kept for now: {problem}")
        told.add("disk")


def _is_kept(run: Path, kept: Path, said: str) -> bool:
    """Whether what is kept of a run is whole, and the run as it is: trained or measured again, it is kept again."""
    if _lost(kept, folders.VALIDATED_FILE) is not None:
        return False
    same = all((run / name).read_bytes() == (kept / name).read_bytes() for name in _SMALL[:-1])
    return same and (kept / folders.METRICS_FILE).read_text(encoding="utf-8").strip() == said


def bring(place: Path, study: Path) -> list[str]:
    """Take the runs that are finished in `place` and not begun in a study into it; their names.

    Raises UserError where `place` holds another study, or one of other films.
    """
    if not (place / folders.STUDY_FILE).is_file():
        return []
    content = folders.read_study(study)
    recipe = _recipe(content, study)
    refuse_another(place, recipe, content)
    found = []
    for metrics_file in sorted(place.glob(f"runs/*/{folders.METRICS_FILE}")):
        kept, run = metrics_file.parent, study / "runs" / metrics_file.parent.name
        if (run / folders.RUN_FILE).is_file() or not is_finished(kept):
            continue
        if (why := _lost(kept, folders.VALIDATED_FILE)) is not None:
            say(f"{kept}: {why}, so the run is done again")
        else:
            run.mkdir(parents=True, exist_ok=True)
            for name in (folders.VALIDATED_FILE, *reversed(_SMALL)):  # run.yaml last: without it the run is not begun
                with files.replacing(run / name) as temporary:
                    shutil.copyfile(kept / name, temporary)
            found.append(run.name)
    if found:
        say(f"finished elsewhere, their figures in {place}: {', '.join(found)}")
    return found


def place_of(run: RunRecipe, study: Path | None, kept: Path | None) -> Path:
    """Where a run's files are: in its study, or where it is `kept`, if it was finished elsewhere and not begun here."""
    own = study / "runs" / run.name if study is not None else Path("nowhere", run.name)
    small = kept / "runs" / run.name if kept is not None else own
    begun = (own / folders.RUN_FILE).is_file()
    return own if begun or not is_finished(small) or _lost(small, folders.VALIDATED_FILE) else small


def _lost(run: Path, validated: str) -> str | None:
    """Which of the files that are kept of a run is missing or damaged; None where all are whole."""
    for name in (*_SMALL, validated):
        if not (run / name).is_file():
            return f"{name} is missing"
        if not files.reads(run / name):
            return f"{name} is damaged"
    return None


def _say_once(text: str, told: set[str] | None) -> None:
    if told is None or text not in told:
        say(text)
    if told is not None:
        told.add(text)


def _in_small(value: object) -> object:
    """What metrics.json says, without the figures of parts of the films, and its numbers to six digits."""
    if isinstance(value, dict):
        return {key: _in_small(part) for key, part in value.items() if key not in _PARTS}
    if isinstance(value, list):
        return [_in_small(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _validated(run: Path) -> RunDocument:
    """A run's figures on the validation images, from their table."""
    table = files.read_table(run / folders.VALIDATION_FILE)
    said = documents.read(RunDocument, run / folders.METRICS_FILE)
    labels, classes = table["label"].to_numpy(), tuple(said.classes)
    return RunDocument(
        version=VERSION,
        run=said.run,
        films=str(table[FILMS].iloc[0]) if FILMS in table else "",
        model=said.model,
        defence=said.defence,
        seed=said.seed,
        classes=said.classes,
        split=str(table["split"].iloc[0]),
        clean=metrics.classification(logits_of(table), labels, table["group"], classes),
    )


def refuse_whole(place: Path) -> None:
    """UserError where a folder for what is kept holds a study with its tables."""
    if (place / folders.DATA_FILE).is_file() or any(place.glob(f"runs/*/{folders.PREDICTIONS_FILE}")):
        raise UserError(f"{place}: holds a whole study, and not what is kept of one; give --kept a folder of its own")


def refuse_another(place: Path, recipe: StudyRecipe, study: Mapping[str, object] | None) -> None:
    """UserError where `place` keeps runs of another recipe, or on other films than those of a `study` (its study.yaml).

    A recipe that has more seeds is no other. Of a study that was not begun the films are not known. A whole study is
    refused too: what is kept would take the place of its files.
    """
    refuse_whole(place)
    if not (place / folders.STUDY_FILE).is_file():
        return
    kept = folders.read_study(place)
    before = _recipe(kept, place)
    if untracked(before) != untracked(recipe) and not (grows(before, recipe) or left_out(place, before, recipe)):
        raise UserError(f"{place}: holds runs of another recipe; name another folder")
    if study is not None and kept.get("fingerprint") != study.get("fingerprint"):
        raise UserError(f"{place}: holds runs on other films; name another folder")


def _recipe(content: Mapping[str, object], study: Path) -> StudyRecipe:
    return validate(StudyRecipe, files.part(content, "recipe"), str(study / folders.STUDY_FILE))
