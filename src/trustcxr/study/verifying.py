"""Every figure of a study computed again from its tables, and held against what its documents and its page say."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

from trustcxr.about import NOTICE, __version__
from trustcxr.console import track
from trustcxr.errors import UserError
from trustcxr.explain.verdicts import SURVIVES
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import differences, documents, files, folders
from trustcxr.results.disk import as_typed
from trustcxr.results.documents import Difference, RunDocument, TrainingDocument, VerifiedDocument
from trustcxr.study import comparison, planned, seeds
from trustcxr.study.again import Tables
from trustcxr.study.choice import ranked
from trustcxr.study.engines import failures

_NOT_OF_TABLES = ("trained_on",)  # alarms that only the films themselves show
# Of a run's document what comes from the films, from training.json, or from no table that is kept.
_OF_NO_TABLE = ("version", "provenance", "notes", "films", "training", "planted_shortcuts")
# Computed otherwise before the documents had a version (0.1): intervals, calibration, verdicts; see
# results/statistics-before-after.md. Of such a study these are not held against what is computed today.
_SINCE = re.compile(r"_ci\b|\bece(_scaled)?\b|\bmasking\b|\balarms\b|\bcomparisons\b")
# What was not kept before: where a document has none, there is nothing to hold against today's.
_LATER = re.compile(
    r"^(attacks\[.*\]\.(success_rate|ece)|corruptions\[.*\]\.flip_rate"
    r"|certified\[.*\]\.(proved|balanced_accuracy))_ci$"
    r"|^lesions\[.*\]\.(condition|epsilon)$|^saliency\..*_activation$|^saliency\..*\.over_controls$"
)


def verify(study: Path, render: Callable[[Path], str] | None = None) -> VerifiedDocument:
    """Compute every figure of a study again; what differs, by file and key. UserError where there is no study.

    `render` gives the page of a folder as its files give it now: held against the page that is there, but for drawings,
    where this version wrote it.
    """
    folder = folders.check_study(study)
    stored = files.read_document(folder / folders.STUDY_RESULTS)
    documents.refuse_later(stored, folder / folders.STUDY_RESULTS)
    found = VerifiedDocument(
        study=str(stored.get("study", "")),
        folder=str(folder),
        notice=NOTICE,
        written_by=str(stored.get("trustcxr", "")),
        runs=0,
        figures=0,
        files=0,
        differences=[],
        unchecked=[],
    )
    old = stored.get("version") is None
    recipe = validate(StudyRecipe, stored.get("recipe") or {}, str(folder / folders.STUDY_RESULTS))
    entries = _records(stored.get("runs"))
    again: dict[Path, RunDocument] = {}
    for said in track(entries, "computing every run again", len(entries)):
        with _telling(found):
            _run(found, said, again, recipe, old)
    with _telling(found):
        _unsaid(found, stored, recipe)
    _whole(found, stored, recipe, again, old)
    if render is not None:
        _page(found, folder, render)
    if old:
        found.unchecked.append(
            f"written by {found.written_by or 'an older version'}: intervals, calibration errors, comparisons, "
            "verdicts and alarms are computed otherwise since, and were not held against today's"
        )
    return found


def _run(
    found: VerifiedDocument, said: Mapping[str, object], again: dict[Path, RunDocument], recipe: StudyRecipe, old: bool
) -> None:
    """One run of study.json, and its own files; what was computed of it is put into `again`."""
    place = Path(found.folder) / "runs" / str(said.get("run"))
    _training(found, said, place, old)
    run = Tables.read(place)
    if isinstance(run, str):
        found.unchecked.append(run)
        return
    _weights(found, run)
    document = run.computed(recipe)
    again[place] = document
    found.runs += 1
    _hold(found, f"{folders.STUDY_RESULTS}: {said.get('run')}", said, _parts(document), old, run.behind())
    _own(found, run, document, recipe, old)


@contextmanager
def _telling(found: VerifiedDocument) -> Iterator[None]:
    """A file that nothing can be computed from is a difference: it is no longer what figures were computed from."""
    try:
        yield
    except UserError as problem:
        file, _, what = str(problem).removeprefix(f"{found.folder}/").partition(": ")
        found.differences.append(Difference(file=file, key="the file", said="whole", computed=what))


def _unsaid(found: VerifiedDocument, stored: Mapping[str, object], recipe: StudyRecipe) -> None:
    """Runs of the recipe that are finished here, and that study.json does not have; what it has twice, or invented."""
    folder, runs = Path(found.folder), planned.runs(recipe, Path(found.folder))
    said = Counter(str(run.get("run")) for run in _records(stored.get("runs")))
    wanted = {run.name for run in (*runs.certain, *runs.open)}
    for name, times in said.items():
        if times > 1 or (name not in wanted and not (folder / "runs" / name).is_dir()):
            what = {"said": f"there {times} times" if times > 1 else "there"}
            what["computed"] = "once" if name in wanted else "no such run"
            found.differences.append(Difference(file=folders.STUDY_RESULTS, key=f"runs[{name}]", **what))
    failed = {str(run.get("run")) for run in _records(stored.get("failures"))}
    for name in [run.name for run in runs.certain if run.name not in said]:
        place = folder / "runs" / name
        known = name in failed and failures.reason(place) is not None
        if (place / folders.METRICS_FILE).is_file() and not known:
            computed = f"finished in {_within(found, place)}"
            found.differences.append(Difference(file=folders.STUDY_RESULTS, key=f"runs[{name}]", computed=computed))


def _parts(document: RunDocument) -> Mapping[str, object]:
    """What of a run's document comes from tables."""
    content = differences.plain(document)
    assert isinstance(content, dict)
    of_no_table = ("version", "provenance", "notes", "films", "training")
    kept = {key: value for key, value in content.items() if key not in of_no_table}
    return kept | {"alarms": _alarms(kept.get("alarms"))}


def _alarms(alarms: object) -> list[object]:
    return [alarm for alarm in _records(alarms) if alarm.get("kind") not in _NOT_OF_TABLES]


def _records(content: object) -> list[dict[str, object]]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _hold(
    found: VerifiedDocument,
    file: str,
    said: object,
    computed: object,
    old: bool,
    behind: Mapping[str, Path] | None = None,
) -> None:
    """Add what differs between a part of a file and what was computed.

    `behind`, of all of a run's document: the table that each part is of; what is said and was not computed is no figure
    of a table.
    """
    said = said | {"alarms": _alarms(said.get("alarms"))} if isinstance(said, dict) and "alarms" in said else said
    differing = list[differences.Found]()
    if behind is not None and isinstance(said, dict) and isinstance(computed, dict):
        said, computed = _with_tables(found, file, said, computed, behind)
        differing += differences.unbacked(said, computed)
    found.files += ": " not in file  # each run's part of study.json is held for itself, and the file is one
    found.figures += differences.figures(computed, but=_SINCE if old else None)
    # 0.1 replaced a table where a run was evaluated again: more is said than its tables hold.
    replaced = {key for key, _, _ in differing if not _SINCE.search(key)}
    for key, is_said, is_computed in (*differences.between(said, computed), *differing):
        if is_said is None and _LATER.search(key):
            continue
        if not old:
            found.differences.append(Difference(file=file, key=key, said=is_said, computed=is_computed))
        elif key.endswith(differences.HOW_MANY) or key in replaced:
            found.unchecked.append(f"{file}: {key}: {is_said}, of which its tables now hold {is_computed or 0}")
        elif not _SINCE.search(key) and is_said is not None:
            found.differences.append(Difference(file=file, key=key, said=is_said, computed=is_computed))


def _with_tables(
    found: VerifiedDocument,
    file: str,
    said: Mapping[str, object],
    computed: Mapping[str, object],
    behind: Mapping[str, Path],
) -> tuple[dict[str, object], dict[str, object]]:
    """What is said of a run and what was computed, without the parts whose table is gone: these are named."""
    gone = {part: path for part, path in behind.items() if said.get(part) and not path.is_file()}
    for part, path in gone.items():
        count = differences.figures(said[part])
        found.unchecked.append(f"{file}: {part}: {_within(found, path)} is missing, so {count} figures were not held")
    if said.get("planted_shortcuts"):
        found.unchecked.append(f"{file}: planted_shortcuts: of films that were rendered anew, and of no table")
    left_out = {*gone, *_OF_NO_TABLE}
    return _without(said, left_out), _without(computed, left_out)


def _without(document: Mapping[str, object], parts: Collection[str]) -> dict[str, object]:
    kept = {key: value for key, value in document.items() if key not in parts}
    if "saliency" in parts and "alarms" in kept:
        kept["alarms"] = [alarm for alarm in _records(kept["alarms"]) if alarm.get("kind") != SURVIVES]
    return kept


def _weights(found: VerifiedDocument, run: Tables) -> None:
    """The weights that the tables are of, and the classes in their order, against the checksums in run.yaml."""
    path, content = run.folder / folders.WEIGHTS_FILE, files.read_yaml(run.folder / folders.RUN_FILE)
    if not (said := files.part(content, "checksums")) and run.training.version is None:
        return  # of 0.1, which kept none
    if not path.is_file():
        found.unchecked.append(f"{_within(found, path)} is missing, so that it is what was trained was not held")
        return
    for name, computed in folders.checksums(run.folder, content.get("classes")).items():
        if said.get(name) != computed:
            place = path if name == path.name else run.folder / folders.RUN_FILE
            differing = {"key": f"checksum of {name}", "said": said.get(name), "computed": computed}
            found.differences.append(Difference(file=_within(found, place), **differing))


def _own(found: VerifiedDocument, run: Tables, of_study: RunDocument, recipe: StudyRecipe, old: bool) -> None:
    """A run's own files: metrics.json, its training.json, its results on other data."""
    path = run.folder / folders.METRICS_FILE
    if not path.is_file():
        found.unchecked.append(f"runs/{run.folder.name}/{folders.METRICS_FILE} is missing; study.json was checked")
    else:
        asked = sorted((name, severity or epsilon) for name, epsilon, _, severity in recipe.evaluation.conditions())
        whole = _conditions(run.said) == asked and set(run.said.saliency) <= set(of_study.saliency)
        document = of_study if whole else run.computed(None)
        _hold(found, _within(found, path), files.read_document(path), _parts(document), old, run.behind())
    with _telling(found):
        _trained(found, run, old)
    for place in sorted(run.folder.glob(f"evaluations/*/{folders.METRICS_FILE}")):
        with _telling(found):
            _elsewhere(found, run, place, old)


def _elsewhere(found: VerifiedDocument, run: Tables, path: Path, old: bool) -> None:
    """The metrics.json of a run on other data."""
    elsewhere = Tables.read(run.folder, path.parent)
    if isinstance(elsewhere, str):
        found.unchecked.append(f"{_within(found, path)}: {elsewhere}")
        return
    said = files.read_document(path)
    _hold(found, _within(found, path), said, _parts(elsewhere.computed(None)), old, elsewhere.behind())


def _conditions(document: RunDocument) -> list[tuple[str, float]]:
    found = [(row.attack, row.epsilon or 0.0) for row in document.attacks]
    return sorted([*found, *((row.corruption, float(row.severity or 0)) for row in document.corruptions)])


def _within(found: VerifiedDocument, path: Path) -> str:
    return path.relative_to(found.folder).as_posix()


def _training(found: VerifiedDocument, said: Mapping[str, object], run: Path, old: bool) -> None:
    """What study.json says of a run's training against its training.json; what is missing for that is said."""
    for name in (folders.TRAINING_FILE, folders.HISTORY_FILE):
        if not (run / name).is_file():
            found.unchecked.append(f"{_within(found, run / name)} is missing, so figures of the training were not held")
    if (document := documents.read_if_there(TrainingDocument, run / folders.TRAINING_FILE)) is not None:
        computed = {"training": differences.plain(document)}
        _hold(found, f"{folders.STUDY_RESULTS}: {run.name}", said, computed, old)


def _trained(found: VerifiedDocument, run: Tables, old: bool) -> None:
    """training.json against history.csv: how many epochs, and what the kept one had."""
    history, path = run.folder / folders.HISTORY_FILE, run.folder / folders.TRAINING_FILE
    if not (history.is_file() and path.is_file()) or run.training.refit is not None:
        return
    monitor, best = run.training.monitor, run.training.best_epoch
    table = _history(history, monitor)
    computed: dict[str, object] = {"epochs": len(table), "seconds": float(table["seconds"].iloc[-1])}
    if best is not None and not 0 <= best < len(table):
        computed["best_epoch"] = f"one of 0 to {len(table) - 1}"
    elif best is not None and monitor in table:
        computed["best_value"] = float(table[monitor].iloc[best])
    _hold(found, _within(found, path), files.read_document(path), computed, old)


def _history(path: Path, monitor: str) -> pd.DataFrame:
    """history.csv; UserError where it is damaged: no command but the training itself writes it."""
    why = "not readable as a table"
    with suppress(UserError):
        table = files.read_table(path)
        strange = [n for n in ("seconds", monitor) if n in table and not pd.api.types.is_numeric_dtype(table[n])]
        if len(table) and "seconds" in table and not strange:
            return table
        why = "no epochs in it" if table.empty else f"no numbers in {strange[0]}" if strange else "no column seconds"
    raise UserError(f"{path}: damaged: {why}; restore it: no command makes it again but a training from the beginning")


def _whole(
    found: VerifiedDocument,
    stored: Mapping[str, object],
    recipe: StudyRecipe,
    again: Mapping[Path, RunDocument],
    old: bool,
) -> None:
    """What study.json says of all runs together: comparisons, spread over seeds, alarms, the choice."""
    said = {str(run.get("run")): run for run in _records(stored.get("runs"))}
    names = {place.name for place in again}
    if unread := [name for name in said if name not in names]:
        found.unchecked.append(
            f"{folders.STUDY_RESULTS}: comparisons, spread over seeds, ranking and alarms, which are of all runs "
            f"together: of {', '.join(unread)} there is nothing to compute them from"
        )
        return
    alarms = [alarm.model_copy(update={"run": run.run}) for run in again.values() for alarm in run.alarms]
    computed: dict[str, object] = {
        "comparisons": comparison.compared(again, resamples=recipe.evaluation.bootstrap),
        "alarms": [alarm for alarm in alarms if alarm.kind not in _NOT_OF_TABLES],
    }
    if len(recipe.seeds) > 1 or stored.get("over_seeds"):
        computed["over_seeds"] = seeds.over_seeds(list(again.values()))
    if (ranking := _ranking(found, recipe, again)) is not None:
        computed["selection"] = {"ranking": ranking}
    lost = [place.name for place in again if _lost_maps(place, said[place.name])]
    plain, whole = differences.plain(computed), dict(stored)
    if lost and isinstance(plain, dict):
        found.unchecked.append(
            f"{folders.STUDY_RESULTS}: comparisons and spread over seeds of maps: {folders.SALIENCY_FILE} of "
            f"{', '.join(lost)} is missing"
        )
        plain, whole = _without_maps(plain), _without_maps(whole)
    _hold(found, folders.STUDY_RESULTS, whole, plain, old)


def _lost_maps(place: Path, said: Mapping[str, object]) -> bool:
    return bool(said.get("saliency")) and not (place / folders.SALIENCY_FILE).is_file()


def _without_maps(document: Mapping[str, object]) -> dict[str, object]:
    """What is said of all runs together, but for what is of maps."""
    kept = _without(document, ("saliency",))
    if "comparisons" in kept:
        kept["comparisons"] = [row for row in _records(kept["comparisons"]) if not row.get("method")]
    if "over_seeds" in kept:
        kept["over_seeds"] = [
            part | {"figures": [row for row in _records(part.get("figures")) if not row.get("method")]}
            for part in _records(kept["over_seeds"])
        ]
    return kept


def _ranking(
    found: VerifiedDocument, recipe: StudyRecipe, again: Mapping[Path, RunDocument]
) -> list[documents.Ranked] | None:
    """The networks by validation; None, which is said, where a run has no predictions on validation."""
    folder = Path(found.folder)
    pairs = [
        (run, place)
        for place, document in again.items()
        if document.defence == "standard"
        for run in [validate(RunRecipe, files.read_yaml(place / folders.RUN_FILE)["recipe"], str(place))]
        if run.defence == type(run.defence)()
    ]
    if missing := [place.name for _, place in pairs if not (place / folders.VALIDATION_FILE).is_file()]:
        found.unchecked.append(
            f"the ranking on validation: {folders.VALIDATION_FILE} of {', '.join(missing)} is missing in {folder.name}"
        )
        return None
    return ranked(recipe.selection, pairs, next(iter(again.values())).classes) if pairs else None


def _page(found: VerifiedDocument, folder: Path, render: Callable[[Path], str]) -> None:
    """The page as it is against the page as its files give it now; drawings are left out."""
    path, command = folder / folders.REPORT_FILE, f"`trustcxr report {as_typed(folder)}`"
    if not path.is_file():
        found.unchecked.append(f"{folders.REPORT_FILE}: not there; {command} writes it")
        return
    if found.written_by != __version__:
        found.unchecked.append(f"{folders.REPORT_FILE}: another version's words; {command} renews it")
        return
    said, now = (_lines(text) for text in (path.read_text(encoding="utf-8"), render(folder)))
    found.files, found.figures = found.files + 1, found.figures + len(now)
    differing = [(a, b) for a, b in zip(said, now, strict=False) if a != b]
    if len(said) != len(now):
        differing = differing[:1] or [(f"{len(said)} lines", f"{len(now)} lines")]
    for one, other in differing[:20]:
        found.differences.append(Difference(file=folders.REPORT_FILE, key="text", said=one[:300], computed=other[:300]))


def _lines(text: str) -> list[str]:
    """The words of a page, a line a piece of text; no drawings, no pictures, no marks."""
    bare = re.sub(r"<(svg|style|script)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return [line.strip() for line in re.sub(r"<[^>]*>", "\n", bare).splitlines() if line.strip()]
