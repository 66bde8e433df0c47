"""The figures of a run computed again from its tables alone."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from trustcxr.errors import UserError
from trustcxr.evaluation import drops, summary
from trustcxr.evaluation.run import About
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import documents, files, folders, tables
from trustcxr.results.documents import RunDocument, TrainingDocument
from trustcxr.results.tables import CLEAN
from trustcxr.study import beside
from trustcxr.study.films import validation_file


@dataclass
class Tables:
    """What a run's folder says of itself, and its tables."""

    folder: Path
    place: Path
    recipe: RunRecipe
    classes: tuple[str, ...]
    training: TrainingDocument = field(default_factory=TrainingDocument)

    @classmethod
    def read(cls, folder: Path, place: Path | None = None) -> "Tables | str":
        """The tables of a run, on its own films or those of `place`; why not, where they are not all there."""
        place = place or folder
        for path in (folder / folders.RUN_FILE, place / folders.PREDICTIONS_FILE):
            if not path.is_file():
                return f"{folder.name}: {path.name} is missing, so its figures cannot be computed"
        content = files.read_yaml(folder / folders.RUN_FILE)
        recipe = validate(RunRecipe, content.get("recipe") or {}, str(folder / folders.RUN_FILE))
        names = content.get("classes")
        training = documents.read_if_there(TrainingDocument, folder / folders.TRAINING_FILE) or TrainingDocument()
        return cls(folder, place, recipe, tuple(map(str, names if isinstance(names, list) else ())), training)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """All of predictions.parquet; UserError where it is damaged."""
        return self._whole(self.place / folders.PREDICTIONS_FILE)

    def _whole(self, path: Path) -> pd.DataFrame:
        table = files.read_table(path)
        tables.refuse_damaged(table, path, len(self.classes))
        return table

    def behind(self) -> dict[str, Path]:
        """The table that each part of a document comes from, where that is not predictions.parquet alone."""
        beside = {
            "calibration": validation_file(self.folder, self.place),
            "saliency": self.place / folders.SALIENCY_FILE,
            "lesions": self.place / folders.LESIONS_FILE,
            "certified": self.place / folders.CERTIFIED_FILE,
        }
        internal = {"drop_from_internal": self.folder / folders.PREDICTIONS_FILE}
        return beside | (internal if self.place != self.folder else {})

    def computed(self, study: StudyRecipe | None) -> RunDocument:
        """The same as `document`, whatever was done to the tables: UserError where nothing can be computed of them."""
        try:
            return self.document(study)
        except UserError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
            text = f"{type(problem).__name__}: {problem}".replace("\n", " ")
            there = [self.place / folders.PREDICTIONS_FILE, *self.behind().values()]
            names = " or ".join(dict.fromkeys(path.name for path in there if path.is_file()))
            raise UserError(f"{self.place}: damaged: {names} ({text}); restore it, or make it anew") from problem

    def document(self, study: StudyRecipe | None) -> RunDocument:
        """metrics.json as the tables give it; of a study what its recipe asks for, else all that they hold."""
        table, resamples = self.predictions, beside.RESAMPLES if study is None else study.evaluation.bootstrap
        document = summary.figures(
            About.trained(self.recipe),
            self.classes,
            table,
            validation=self._validation(),
            resamples=resamples,
            refit=self.recipe.training.refit,
            training=self.training,
            at_random=lambda: bool(self.said.masking and self.said.masking.at_random),
        )
        images = int((self.predictions["attack"] == CLEAN).sum())
        beside.describe(document, self.place, images=images, resamples=resamples)
        if self.place != self.folder and (self.folder / folders.PREDICTIONS_FILE).is_file():
            internal = self._whole(self.folder / folders.PREDICTIONS_FILE)
            # What was measured of the run's own films since is no part of what was said of others then.
            known = {(row.attack, row.epsilon, row.steps) for row in self.said.drop_from_internal}
            found = drops.from_internal(internal, table)
            document.drop_from_internal = [row for row in found if (row.attack, row.epsilon, row.steps) in known]
        return document

    @cached_property
    def said(self) -> RunDocument:
        """metrics.json as it stands; empty where it is not there."""
        return documents.read_if_there(RunDocument, self.place / folders.METRICS_FILE) or RunDocument()

    def _validation(self) -> pd.DataFrame | None:
        path = validation_file(self.folder, self.place)
        if not path.is_file():
            return None
        table = self._whole(path)
        return None if set(table["sample_id"]) == set(self.predictions["sample_id"]) else table
