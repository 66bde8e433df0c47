"""Two settings of one network and of one defence in a study, each under its label; and what another seed does."""

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from pack import Pack
from test_engines import small
from trustcxr import report
from trustcxr.report.load import load_report
from trustcxr.report.tables import accuracy
from trustcxr.storage import atomic, schemas
from trustcxr.storage.schemas import RunDocument, StudyDocument
from trustcxr.study import engines
from trustcxr.study.comparison import over_seeds
from trustcxr.study.run_study import Study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network twice, one defence twice, two seeds: the chosen network has 2 x 3 runs, the other 2."""
    base = tmp_path_factory.mktemp("labels")
    network = {"name": "test_resnet", "weights": "none"}
    models = [network | {"label": "plain"}, network | {"label": "smooth", "activation": "silu"}]
    defences = [{"name": "fgsm"}, {"name": "fgsm", "label": "half", "epsilon": 0.01}]
    recipe = small(models=models, defences=defences, seeds=[0, 1])
    Study(recipe, pack.images(), base / "out", engines.get("local")).run()  # type: ignore[arg-type]
    return base / "out"


@pytest.fixture(scope="module")
def study(done: Path) -> StudyDocument:
    return schemas.read_schema(StudyDocument, done / "study.json")


def test_each_setting_is_a_run_of_its_own_under_its_label(done: Path, study: StudyDocument) -> None:
    chosen = next(row.model for row in study.selection.ranking if row.chosen)
    assert {row.model for row in study.selection.ranking} == {"plain", "smooth"}
    endings = [f"{how}-s{seed}" for how in ("fgsm", "half", "standard") for seed in (0, 1)]
    here = sorted(path.name for path in (done / "runs").iterdir())
    assert [name for name in here if name.startswith(chosen)] == [f"{chosen}-{ending}" for ending in endings]
    assert len(here) == 8
    half = next(run for run in study.runs if run.run == f"{chosen}-half-s1")
    assert (half.model, half.defence, half.label, half.seed) == (chosen, "fgsm", "half", 1)
    assert atomic.read_yaml(done / "runs" / half.run / "run.yaml")["recipe"]["model"]["name"] == "test_resnet"
    assert {row.label for row in study.comparisons} == {"", "half"}


@pytest.mark.usefixtures("unrendered")
def test_labels_are_in_the_page_the_terminal_and_the_tables(done: Path, study: StudyDocument) -> None:
    runs = load_report(done).runs
    assert sum("half" in run.label for run in runs) == 2
    assert len({run.label for run in runs}) == len(runs)
    assert any("half" in cell.small for row in accuracy.comparisons(study).rows for cell in row)
    assert "Over seeds" in report.write(done).read_text()


def test_figures_over_seeds_are_those_of_the_runs(study: StudyDocument) -> None:
    assert len(study.over_seeds) == 4
    group = next(group for group in study.over_seeds if group.label == "half")
    values: Any = [run.clean.accuracy.value for run in study.runs if run.label == "half"]
    figure = next(f for f in group.figures if f.measure == "clean accuracy")
    assert (figure.n, group.seeds) == (2, [0, 1])
    assert figure.mean == pytest.approx(fmean(values))
    assert figure.deviation == pytest.approx(stdev(values))
    assert figure.mean in [cell.value for row in accuracy.over_seeds(study).rows for cell in row]
    assert over_seeds([RunDocument(model="a", defence="fgsm", seed=0)]) == [], "one seed has no spread"
    assert accuracy.over_seeds(StudyDocument()) is None


def test_of_several_numbers_of_steps_the_lowest_counts() -> None:
    steps = ((2, {"value": 0.5}), (20, {"value": 0.25}))
    attacks = [{"attack": "pgd", "epsilon": 0.02, "steps": s, "accuracy": a} for s, a in steps]
    runs = [RunDocument.model_validate({"model": "a", "seed": s, "attacks": attacks}) for s in (0, 1)]
    (group,) = over_seeds(runs)
    assert [(f.measure, f.mean, f.deviation) for f in group.figures] == [("pgd accuracy @0.02", 0.25, 0.0)]
