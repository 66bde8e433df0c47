"""One run in its folder: train, validate, test, explain, describe. Study and commands alike go through these steps."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from trustcxr.catalogue import HEADLINE_ATTACKS, USUAL_ATTACKS, WORST_CASE
from trustcxr.certify import contract
from trustcxr.certify.proofs import Effort
from trustcxr.console import say
from trustcxr.data import load_dataset, provenance
from trustcxr.data.dataset import Joined
from trustcxr.errors import UserError
from trustcxr.evaluation import certified, drops
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.run import Run, as_before_refit, load_run
from trustcxr.evaluation.shortcuts import audit
from trustcxr.evaluation.summary import describe
from trustcxr.explain import scores
from trustcxr.recipes.run import Listing, RunRecipe, Splits
from trustcxr.recipes.testing import EvaluationRecipe, ExplanationRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import documents, files, folders, tables
from trustcxr.results.documents import Alarm, RunDocument, TrainingDocument
from trustcxr.results.locks import holding
from trustcxr.study import beside, explaining, made, mending, preflight
from trustcxr.study import films as tested
from trustcxr.study.asked import corruptions_recipe, recipe
from trustcxr.study.films import Source, report_skipped

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

__all__ = ["RunFolder", "certify", "evaluate", "explain", "recipe", "report_skipped", "train"]


class RunFolder:
    """One run, step by step. Every step leaves its file whole or not at all.

    `folder` holds the run; `place` what was found on some films: for the run's own test films the folder itself.
    Steps of a study are done once: with `once`, what an earlier start left is kept. A command does what it is asked,
    and keeps what was measured there under other conditions.
    """

    def __init__(self, folder: Path, place: Path | None = None) -> None:
        self.folder, self.place = folder, place or folder

    @cached_property
    def run(self) -> Run:
        """The run, loaded."""
        return load_run(self.folder)

    def refuse_another(self, recipe: RunRecipe) -> None:
        """UserError where the folder holds a run of another recipe."""
        path = self.folder / folders.RUN_FILE
        if not path.is_file():
            return
        before = files.read_yaml(path, advice="restore it, or choose another --out").get("recipe") or {}
        # Read as a recipe, so that keys that are new since then have their default.
        if not recipe.same_as(validate(RunRecipe, before, str(path))):
            raise UserError(f"{self.folder}: holds another run; choose another --out")

    def train(self, recipe: RunRecipe, train: "Dataset", val: "Dataset", **how: Any) -> TrainingDocument:
        """Train, or go on; its training.json. UserError where the folder holds another run, or one of other films.

        `how`: cards, as `training.fit` takes them.
        """
        from trustcxr.training import checkpoint, loop

        self.refuse_another(recipe)
        provenance.refuse_other_films(self.folder, Joined(train, val) if recipe.training.refit else train)
        if mending.untrained(self.folder) is not None:
            return loop.fit(recipe, train, val, self.folder, **how)
        checkpoint.remove(self.folder)  # left where the training was killed when all but that was done
        return documents.read(TrainingDocument, self.folder / folders.TRAINING_FILE)

    def validate(self, val: "Dataset", *, batch_size: int = 64) -> None:
        """Predictions on the validation images, of the weights that validation judged; made once."""
        path = tested.validation_file(self.folder, self.place)
        if not path.is_file():
            table = evaluation.predict(as_before_refit(self.run), val, views=False, batch_size=batch_size)
            files.write_table(path, table.assign(**{tables.FILMS: val.fingerprint}))

    def test(self, films: "Dataset", options: EvaluationRecipe, *, once: bool = False) -> None:
        """Predictions on `films`, clean, under attack and corrupted; what was predicted there before is kept."""
        path = self.place / folders.PREDICTIONS_FILE
        before = files.read_table(path) if path.is_file() else None
        if before is not None and not tables.same_films(before, films):
            raise UserError(f"{path}: of other films than those of {films.where} (split {films.split}); move it away")
        made.regroup(self.place, films)
        masks, known = made.masks(films), made.of(self.place, path.name)
        wanted = made.predictions(options) | masks
        if before is not None:
            before = tables.without_views(before) if made.otherwise(known, masks) else files.read_table(path)
        there = before is not None and options.conditions() <= set(tables.conditions_of(before))
        if once and there and not made.otherwise(known, wanted):
            return
        table = evaluation.predict(
            self.run, films, options.attacks, corruptions=options.corruptions, batch_size=options.batch_size
        )
        table = table.assign(**{tables.FILMS: films.fingerprint})
        files.write_table(path, tables.merged(before, table))
        made.note(self.place, path.name, known | wanted)

    def explain(
        self,
        films: "Dataset",
        options: ExplanationRecipe,
        val: "Dataset | None",
        *,
        train: "Dataset | None" = None,
        once: bool = False,
    ) -> None:
        """Saliency on `films`; other methods measured there before are kept. Thresholds are tuned on `val`.

        Where there is none, thresholds are those of the run's own saliency, if it was measured. Maps are held against
        the mean lesion mask of `train` too. Where films have such masks, also what becomes of the answer without it.
        """
        made.regroup(self.place, films)
        explaining.measure(
            self.place,
            self.run,
            films,
            options,
            lambda: self._levels(options, val),
            tuned=val is not None,
            once=once,
            train=train,
        )

    def prove(
        self, films: "Dataset", radii: Sequence[float], *, effort: Effort | None = None, once: bool = False
    ) -> pd.DataFrame:
        """certified.parquet: which answers cannot change within each radius; other radii proved there are kept."""
        made.regroup(self.place, films)
        path = self.place / folders.CERTIFIED_FILE
        before = files.read_table(path) if path.is_file() else None
        known, wanted = made.of(self.place, path.name), made.proofs(radii, effort) | made.films(films)
        if before is not None and made.otherwise(known, made.films(films)):
            say(f"{path}: was of other films: made again, at what is asked for now")
            before, known = None, {}
        if before is not None and once and set(radii) <= set(before["epsilon"]) and not made.otherwise(known, wanted):
            return before
        if again := [key for key in wanted if known.get(key) and made.otherwise({key: known[key]}, wanted)]:
            say(f"{path}: epsilon {', '.join(again)} was proved otherwise before: made again, as is asked for now")
        table = certified.merged(before, certified.prove(self.run, films, radii, effort=effort))
        files.write_table(path, table)
        made.note(self.place, path.name, known | wanted)
        return table

    def _levels(self, options: ExplanationRecipe, val: "Dataset | None") -> dict[str, float]:
        if val is None:
            return {} if self.place == self.folder else explaining.thresholds_of(self.folder)
        return scores.tune(as_before_refit(self.run), val, options.methods)

    def describe(
        self,
        films: "Dataset",
        *,
        validation: pd.DataFrame | None,
        resamples: int = made.RESAMPLES,
        only: EvaluationRecipe | None = None,
        methods: Sequence[str] | None = None,
        planted: Any = None,
    ) -> RunDocument:
        """metrics.json from the tables: all of them, or `only` what a study's recipe asks for, and of its `methods`.

        Figures of other recipes in metrics.json are then refused, which is said: predictions.parquet keeps them.
        `planted`: what became of planted shortcuts, where that was measured now.
        """
        path = self.place / folders.METRICS_FILE
        before = documents.read_if_there(RunDocument, path)
        if only is not None and before is not None:
            if made.is_of(self.place, before, only, methods, resamples):
                return before
            say(f"{path}: not of the study's recipe, so written again; the tables beside it keep all that they hold")
        table = files.read_table(self.place / folders.PREDICTIONS_FILE)
        if only is not None:
            table = tables.under(table, only.conditions())
        document = describe(self.run, table, validation=validation, resamples=resamples)
        document.films, document.notes = films.fingerprint, tested.notes(self.run, films)
        if tested.trained_on(self.run, films):
            document.alarms.insert(0, Alarm(kind="trained_on", text=document.notes[0]))
        if planted is not None or before is not None:
            document.planted_shortcuts = planted if planted is not None or before is None else before.planted_shortcuts
        if only is None and before is not None:
            beside.say_gone(before, document, path)
        internal = self.folder / folders.PREDICTIONS_FILE
        if self.place != self.folder and internal.is_file():
            document.drop_from_internal = drops.from_internal(files.read_table(internal), table)
        radii = None if only is None else only.radii()
        beside.describe(document, self.place, images=len(films), resamples=resamples, radii=radii, methods=methods)
        files.write_json(path, document)
        made.note_metrics(self.place, document, resamples)
        return document

    def validation(self, films: "Dataset", val: "Dataset | None") -> pd.DataFrame | None:
        """Predictions on validation images to calibrate by; None where there are none, or they are `films`."""
        path = tested.validation_file(self.folder, self.place)
        if val is not None:
            self.validate(val)
        if not path.is_file():
            return None
        table = files.read_table(path)
        # A temperature fitted on the very images that it is judged by would flatter.
        return None if tables.same_films(table, films) else table


# --- what the commands do --------------------------------------------------------------------------------------------


def train(
    run: RunRecipe, data: Path, folder: Path, *, devices: int = 1, nodes: int = 1, strategy: str = "ddp"
) -> TrainingDocument:
    """Train a run into `folder`, or go on with it; its training.json. On so many cards of each of so many machines.

    A run that was trained and lost its weights, or part of them, is trained again, without what was measured of it.
    """
    from trustcxr.models import factory
    from trustcxr.training.cards import Cards

    tested.refuse_films(folder, Path(data))
    mending.refuse_foreign(folder)
    cards = Cards(devices, nodes, strategy)
    cards.check(run, run.training.batch_size)
    if (folder / folders.STUDY_FILE).is_file():
        raise UserError(f"{folder}: holds a study, whose runs it trains itself; give another --out")
    steps = RunFolder(folder)
    steps.refuse_another(run)
    # Networks that do not fit, and weights that cannot be had, are said before the images are decoded.
    factory.check(run.model.name, size=run.data.size, **run.model.options())
    done = mending.untrained(folder) is None
    if not done:
        model = factory.build(run.model.name, classes=2, weights=run.model.weights, **run.network_options())
        preflight.learns(run, model)
    names = run.data.splits
    parts = [
        load_dataset(data, split, every=split == names.train, **run.data.reading())
        for split in (names.train, names.val)
    ]
    for note in parts[0].notes:
        say(note)
    report_skipped(*parts)
    preflight.classes({"train": parts[0], "val": parts[1]})
    with holding(folder) if cards.rank == 0 else nullcontext():
        if done:
            say(f"{folder}: already trained")
        elif cards.rank == 0:
            mending.mend(folder)
        return steps.train(run, parts[0], parts[1], cards=cards)


def evaluate(
    folder: Path,
    data: Path,
    *,
    split: str | None = None,
    attacks: Sequence[str] | None = None,
    epsilons: Sequence[float] | None = None,
    steps: int | None = None,
    queries: int | None = None,
    surrogate: Path | None = None,
    sweep: bool = False,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
    shortcuts: bool = False,
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
    out: Path | None = None,
) -> tuple[RunDocument, Path]:
    """Predictions and metrics of a run on a data set: the document of metrics.json, and the folder that it is in.

    What was measured there before under other conditions is kept. `sweep` adds the epsilons of a whole curve.
    `corruptions` are names, or "all". `shortcuts`: synthetic films are rendered again with each planted shortcut
    removed or moved to another class. On external data the document also holds the drop from the internal test set, if
    that was evaluated before. `out`: the folder of the results, where it is not within the run's.
    """
    tested.refuse_films(out, Path(data))
    radii = [*(evaluation.SWEEP if sweep else ()), *(epsilons or (() if sweep else (0.02,)))]
    conditions = evaluation.conditions(
        attacks or USUAL_ATTACKS, radii, steps=steps, queries=queries, surrogate=surrogate
    )
    options = EvaluationRecipe(attacks=conditions, corruptions=corruptions_recipe(corruptions, severities))
    run, given = load_run(folder), Source(data, split, labels, listing)
    films = tested.load(run, given)
    place = tested.place_of(run, films, out)
    with holding(out or folder):
        return _test(run, given, films, place, options, shortcuts=shortcuts), place


def _test(
    run: Run,
    given: Source,
    films: "Dataset",
    place: Path,
    options: EvaluationRecipe,
    *,
    shortcuts: bool = False,
    resamples: int = made.RESAMPLES,
) -> RunDocument:
    """Test and describe; metrics.json."""
    tested.say_notes(run, films)
    planted = audit(run, films.root, split=str(films.split or Splits().test)) if shortcuts else None
    steps = _steps(run, place)
    steps.test(films, options)
    val = tested.validation_of(run, given, "calibration is not measured") if _own(run, films, place) else None
    return steps.describe(films, validation=steps.validation(films, val), planted=planted, resamples=resamples)


def certify(
    folder: Path,
    data: Path,
    *,
    epsilons: Sequence[float] | None = None,
    effort: Effort | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
) -> tuple[RunDocument, Path]:
    """Prove which answers of a run cannot change within epsilon: certified.parquet, and `certified` in metrics.json.

    Other epsilons that were certified there before are kept. Beside each stands what attacks leave: where the run was
    not evaluated on these images yet, or not by the worst case of several attacks at each epsilon, that is done too.
    Raises UserError, naming the layer, where the model cannot be bounded, and for an epsilon of 0.
    """
    from trustcxr.attacks.contract import check_epsilon

    radii = [check_epsilon(epsilon) for epsilon in dict.fromkeys(epsilons or certified.EPSILONS)]
    if 0 in radii:
        raise UserError("epsilon 0: no pixel may change, so there is nothing to prove; give one above 0")
    run, given = load_run(folder), Source(data, split, labels, listing)
    contract.layers(run.model)  # what cannot be bounded is said before the images are read
    films = tested.load(run, given)
    place = tested.place_of(run, films)
    with holding(folder):
        resamples = made.resamples_of(place)
        _steps(run, place).prove(films, radii, effort=effort)
        before = documents.read_if_there(RunDocument, place / folders.METRICS_FILE)
        if left := beside.unattacked(before, place, radii):
            names = HEADLINE_ATTACKS if before is None else (WORST_CASE,)
            options = EvaluationRecipe(attacks=evaluation.conditions(names, left))
            return _test(run, given, films, place, options, resamples=resamples), place
        return beside.told_again(run, films, place), place


def explain(
    folder: Path,
    data: Path,
    *,
    options: Mapping[str, Any] | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
    out: Path | None = None,
) -> tuple[RunDocument, Path]:
    """Saliency of a run measured on a data set; other methods measured there before are kept.

    The table is written a batch at a time. `options`: keys of ExplanationRecipe. Thresholds are tuned on the run's
    validation split where this is its own data; on other data those that were tuned there before are used. `out`: the
    folder of the results, where it is not within the run's.
    """
    tested.refuse_films(out, Path(data))
    wanted = validate(ExplanationRecipe, dict(options or {}), "options")
    scores.check_options(wanted)
    run, given = load_run(folder), Source(data, split, labels, listing)
    scores.check(run, wanted.methods)
    films = tested.load(run, given)
    place = tested.place_of(run, films, out)
    with holding(out or folder):
        own = _own(run, films, place)
        val = tested.validation_of(run, given, "no threshold is tuned") if own else None
        steps = _steps(run, place)
        steps.explain(films, wanted, val, train=tested.training_of(run, given, films))
        if not (place / folders.METRICS_FILE).is_file():
            return _test(run, given, films, place, EvaluationRecipe()), place
        return beside.told_again(run, films, place), place


def _steps(run: Run, place: Path) -> RunFolder:
    made.claim(place, run.folder)
    steps = RunFolder(run.folder, place)
    steps.__dict__["run"] = run  # loaded already
    return steps


def _own(run: Run, films: "Dataset", place: Path) -> bool:
    """Whether these are the run's own test films, and with them its validation films at hand."""
    return place == run.folder or tested.is_own_test(run, films)
