"""A run and a data set become predictions, and predictions become metrics: each checked by another way to it."""

import dataclasses
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn

from pack import Pack
from small_runs import MODEL, seal
from test_models import Trap
from trustcxr import attacks, corruptions, registry
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.data.lung_masks import soften
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions, run_figures
from trustcxr.evaluation.predictions import _of_another_class, boxes, generate_views
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.recipes.evaluation_recipe import AttackRecipe, CorruptionsRecipe
from trustcxr.report.terminal import describe_metrics
from trustcxr.storage import atomic
from trustcxr.storage.schemas import Alarm

PLAN = (AttackRecipe(name="fgsm", epsilons=(0.01, 0.03)), AttackRecipe(name="pgd", epsilons=(0.03,), steps=3))
HARM = CorruptionsRecipe(names=("gaussian_noise", "device"), severities=(1, 5))


@pytest.fixture(scope="module")
def run(pack: Pack) -> Run:
    return load_run(pack.run("standard"), on="cpu")


@pytest.fixture(scope="module")
def held_out(radiographs: tuple[Any, Any]) -> Any:
    return radiographs[1]


@pytest.fixture(scope="module")
def table(run: Run, held_out: Any) -> pd.DataFrame:
    return predictions.predict(run, held_out, PLAN, corruptions=HARM, batch_size=8)


def part(table: pd.DataFrame, attack: str, epsilon: float = 0.0, severity: int = 0) -> pd.DataFrame:
    return table[(table["attack"] == attack) & (table["epsilon"] == epsilon) & (table["severity"] == severity)]


def logits(table: pd.DataFrame, attack: str, epsilon: float = 0.0, severity: int = 0) -> Tensor:
    return torch.from_numpy(np.stack(part(table, attack, epsilon, severity)["logits"]))


@pytest.fixture(scope="module")
def pixels(held_out: Any) -> Tensor:
    return to_pixels(torch.from_numpy(np.array(held_out.images)))


@pytest.fixture(scope="module")
def lungs(held_out: Any) -> Tensor:
    return torch.from_numpy(np.array(held_out.masks("lung"))).float()[:, None]


def is_answer(run: Run, images: Tensor, found: Tensor) -> bool:
    """Whether these are the logits of the run for these images."""
    with torch.inference_mode():
        return torch.allclose(found, run.model(images), atol=1e-4)


def test_predictions_hold_every_image_under_every_condition_once(table: pd.DataFrame, held_out: Any) -> None:
    about = ["sample_id", "group", "source", "split", "class", "label", "view"]  # synthetic images know their view
    condition = ["attack", "epsilon", "steps", "severity"]
    further = ["moved", "broken_by", "gradient", "queries", "rounded", "logits"]
    assert list(table) == [*about, *condition, *further]
    conditions = [("clean", 0.0, 0, 0), ("fgsm", 0.01, 1, 0), ("fgsm", 0.03, 1, 0), ("pgd", 0.03, 3, 0)]
    conditions += [(view, 0.0, 0, 0) for view in registry.VIEWS]
    conditions += [(name, 0.0, 0, severity) for name, severity in product(HARM.names, HARM.severities)]
    counts = table.groupby(condition).size()
    assert counts.to_dict() == dict.fromkeys(conditions, 24)
    by_name = dict(zip(held_out.sample_ids, held_out.labels, strict=True))
    for _, rows in table.groupby(["attack", "epsilon", "severity"]):
        assert sorted(rows["sample_id"]) == sorted(held_out.sample_ids)
        assert [by_name[name] for name in rows["sample_id"]] == rows["label"].tolist()
        assert [held_out.classes[k] for k in rows["label"]] == rows["class"].tolist()
    assert set(table["split"]) == {"Val"}
    answers = np.stack(table["logits"])
    assert (answers.shape, answers.dtype) == ((24 * len(conditions), 3), np.float32)


def test_logits_are_those_of_the_changed_images(run: Run, held_out: Any, table: pd.DataFrame, pixels: Tensor) -> None:
    labels, keys = torch.from_numpy(held_out.labels), held_out.sample_ids.tolist()
    assert is_answer(run, pixels, logits(table, "clean"))
    for epsilon in (0.01, 0.03):
        moved = attacks.fgsm(run.model, pixels, labels, epsilon=epsilon)
        assert is_answer(run, moved, logits(table, "fgsm", epsilon)), epsilon
    first = attacks.pgd(run.model, pixels[:8], labels[:8], epsilon=0.03, steps=3, stop_when_wrong=True, seed=0)
    assert is_answer(run, first, logits(table, "pgd", 0.03)[:8])
    for name, severity in product(HARM.names, HARM.severities):
        changed = corruptions.corrupt(pixels, name, severity, keys=keys)
        assert is_answer(run, changed, logits(table, name, severity=severity)), (name, severity)


def test_gradients_are_of_an_even_part_of_the_images(run: Run, held_out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = predictions.conditions(["fgsm"], [0.01])
    for most, rows in ((8, range(0, 24, 3)), (11, range(0, 24, 3)), (12, range(0, 24, 2)), (128, range(24))):
        monkeypatch.setattr(predictions, "PROBED", most)
        clean = part(predictions.predict(run, held_out, plan, views=False, batch_size=8), "clean")
        assert np.flatnonzero(clean["gradient"].notna()).tolist() == list(rows), most


def test_views_show_what_they_say(run: Run, table: pd.DataFrame, pixels: Tensor, lungs: Tensor) -> None:
    shapes = 0.65 - 0.4 * lungs  # the silhouette: dark lungs on grey, and nothing of the image
    mean = pixels.mean((1, 2, 3), keepdim=True)
    views = (
        ("lungs_blacked_out", pixels * (1 - lungs)),
        ("lungs_in_grey", pixels * (1 - lungs) + 0.5 * lungs),
        ("lungs_in_mean", pixels * (1 - lungs) + mean * lungs),
        ("box_in_grey", pixels * (1 - boxes(lungs)) + 0.5 * boxes(lungs)),
        ("lungs_only", pixels * lungs),
        ("lungs_only_on_grey", pixels * lungs + 0.5 * (1 - lungs)),
        ("silhouette_only", shapes),
    )
    for view, shown in views:
        assert is_answer(run, shown, logits(table, view)), view


def test_images_with_an_empty_lung_mask_have_no_view_without_lungs(
    run: Run, held_out: Any, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = np.array(held_out.masks("lung"))
    masks[::3] = 0
    monkeypatch.setattr(type(held_out), "masks", lambda _, kind: masks)
    found = predictions.predict(run, held_out, (), batch_size=8)
    views = found[found["attack"].isin(registry.VIEWS)]
    assert set(views["sample_id"]) == set(np.delete(held_out.sample_ids, np.arange(0, len(masks), 3)))
    assert len(part(found, "clean")) == len(masks)
    assert f"{len(masks[::3])} of {len(masks)} images have an empty lung mask: left out" in capsys.readouterr().err
    assert part(table, "lungs_only")["sample_id"].nunique() == len(masks)


def test_a_box_is_the_smallest_that_holds_the_mask() -> None:
    masks = torch.zeros(3, 1, 8, 9)
    masks[0, 0, 2, 3] = masks[0, 0, 5, 7] = masks[1, 0, 7, 8] = 1
    found = boxes(masks)
    assert found[0, 0, 2:6, 3:8].min() == 1
    assert found.sum((1, 2, 3)).tolist() == [20, 1, 0]


def test_lungs_are_shown_on_a_image_of_another_class(held_out: Any, pixels: Tensor, lungs: Tensor) -> None:
    labels, rows = np.asarray(held_out.labels), np.arange(len(held_out))
    other = _of_another_class(labels)
    assert (labels[other] != labels).all()
    assert (other == _of_another_class(labels)).all(), "the same for every run"
    assert len(set(other)) > len(labels) / 3, "not one image for all"
    halves = [list(generate_views(held_out, part, pixels[part])) for part in (rows[:5], rows[5:])]
    ((name, *_), _, first), ((_, *_), _, second) = (views[-1] for views in halves)
    assert name == "lungs_on_another_image"
    shown = torch.cat([first, second])
    deep, far = soften(lungs) > 1 - 1e-6, soften(lungs) < 1e-6
    assert deep.any()
    assert torch.allclose(shown[deep], pixels[deep], atol=1e-5)
    assert torch.allclose(shown[far], pixels[other][far], atol=1e-5)
    assert not torch.allclose(shown[far], pixels[far], atol=0.05)


def test_batch_size_and_training_mode_change_nothing(run: Run, held_out: Any, table: pd.DataFrame) -> None:
    run.model.train()
    try:
        again = predictions.predict(run, held_out, PLAN[:1], corruptions=HARM, batch_size=24)
        assert run.model.training
    finally:
        run.model.eval()
    for attack, epsilon, severity in (("clean", 0.0, 0), ("fgsm", 0.03, 0), ("gaussian_noise", 0.0, 5)):
        assert torch.allclose(*(logits(t, attack, epsilon, severity) for t in (table, again)), atol=1e-4)


def test_the_document_is_the_designs(run: Run, table: pd.DataFrame) -> None:
    document = run_figures.describe(run, table, resamples=100).plain()
    about = [document[key] for key in ("run", "model", "defence", "seed", "background", "split", "classes")]
    classes = ["COVID-19", "Non-COVID", "Normal"]
    assert about == [f"{MODEL}-standard-s0", MODEL, "standard", 0, "full", "Val", classes]
    for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro", "auroc_macro", "ece"):
        low, high = document["clean"][name]["ci"]
        assert low <= high
        assert isinstance(document["clean"][name]["value"], float)
    attacked = [(a["attack"], a["epsilon"], a.get("steps"), a["n"]) for a in document["attacks"]]
    assert attacked == [("fgsm", 0.01, None, 24), ("fgsm", 0.03, None, 24), ("pgd", 0.03, 3, 24)]
    harmed = [(c["corruption"], c["severity"], c["n"]) for c in document["corruptions"]]
    assert harmed == [(*condition, 24) for condition in product(HARM.names, HARM.severities)]
    assert (document["corruptions_mean"]["conditions"], document["saliency"]) == (4, {})
    found = document["masking"]
    assert (found["masked"], found["signs"], found.get("at_random", False)) == (None, [], False)  # it knows nothing
    assert "not shown to be better than one constant answer (33.3%)" in found["reasons"][0]
    assert found["looked_for"] == ["input gradients", "one step against many", "the fall with epsilon"]
    clean = part(table, "clean")
    predicted = np.stack(clean["logits"]).argmax(1)
    assert document["clean"]["accuracy"]["value"] == pytest.approx(accuracy_score(clean["label"], predicted))
    theirs = f1_score(clean["label"], predicted, average="macro", labels=range(3), zero_division=0)
    assert document["clean"]["f1_macro"]["value"] == pytest.approx(theirs)


def test_alarms_of_training_stand_in_the_document(run: Run, table: pd.DataFrame) -> None:
    text = "catastrophic overfitting at epoch 3: ..."
    alarmed = dataclasses.replace(run, training=run.training.model_copy(update={"alarm": text}))
    alarms = run_figures.describe(alarmed, table, resamples=100).alarms
    assert Alarm(kind="catastrophic_overfitting", text=text) in alarms


def test_a_data_set_with_fewer_classes_than_the_run(run: Run, pack: Pack, tmp_path: Path) -> None:
    for name in ("COVID-19", "Normal"):
        (tmp_path / "external" / name).mkdir(parents=True)
        for source in sorted(pack.images().rglob(f"Test/{name}/images/*"))[:4]:
            shutil.copy(source, tmp_path / "external" / name / source.name)
    outside = load_dataset(tmp_path / "external", size=32, classes=run.classes, cache=tmp_path / "cache", workers=1)
    found = predictions.predict(run, outside, PLAN[:1])
    assert set(found["class"]) == {"COVID-19", "Normal"}
    assert set(found["label"]) == {0, 2}
    assert "lungs_only" not in set(found["attack"]), "no masks, no views"
    document = run_figures.describe(run, found, resamples=100).plain()
    assert document["clean"]["per_class"]["Non-COVID"]["n"] == 0
    assert np.isfinite(document["clean"]["auroc_macro"]["value"])


@pytest.fixture
def copied(pack: Pack, tmp_path: Path) -> Path:
    return shutil.copytree(pack.run("standard"), tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"recipe": None}, "not the file of a run"),
        ({"classes": ["a", "b"]}, "classes other than those of the training"),
        ({"classes": ["a", "b"], "checksums": None}, "not the weights of this model"),
        ({"recipe": {"model": {"name": "resnet-18"}}}, "unknown model 'resnet-18': did you mean"),
        ({"recipe": {"model": {"name": "test_vit"}}}, "not the weights of this model"),
        ({"recipe": {"model": {"name": MODEL}, "sede": 1}}, "unknown key 'sede': did you mean seed"),
    ],
)
def test_a_run_whose_files_do_not_belong_together(keys: dict[str, Any], text: str, copied: Path) -> None:
    content = atomic.read_yaml(copied / "run.yaml") | keys
    atomic.write_yaml(copied / "run.yaml", {key: value for key, value in content.items() if value is not None})
    if "checksums" in keys:
        seal(copied)
    with pytest.raises(UserError, match=text) as problem:
        load_run(copied)
    assert "\n" not in str(problem.value)


def test_a_run_cannot_run_code(copied: Path, tmp_path: Path) -> None:
    torch.save({"weights": Trap(tmp_path / "ran")}, copied / "model.safetensors")
    seal(copied)
    with pytest.raises(UserError, match="not the weights of this model"):
        load_run(copied)
    (copied / "run.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']")
    with pytest.raises(UserError, match="not readable as YAML"):
        load_run(copied)
    assert not (tmp_path / "ran").exists()


def test_conditions_as_typed() -> None:
    plan = predictions.conditions(["fgsm", "pgd", "fgsm"], [0.02, 0.01, 0.02], steps=7)
    assert [(a.name, a.epsilons, a.steps) for a in plan] == [("fgsm", (0.02, 0.01), None), ("pgd", (0.02, 0.01), 7)]


class Noise(nn.Module):
    """Noise that a model adds before it answers, as a defence by randomness does."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn_like(images)


def test_a_model_that_answers_at_random_is_said_to_be_flattered_in_the_verdict(run: Run, table: pd.DataFrame) -> None:
    flattered = "its outputs are random, and attack and test see the same draw: its robust accuracy is overestimated"
    noisy = dataclasses.replace(run, model=nn.Sequential(Noise(), run.model))
    document = run_figures.describe(noisy, table, resamples=100)
    assert document.masking.at_random is True
    assert document.masking.reasons[-1] == flattered
    assert flattered in "\n".join(describe_metrics(document))
    plain = run_figures.describe(run, table, resamples=100)
    assert plain.masking.at_random is False
    assert flattered not in plain.masking.reasons
