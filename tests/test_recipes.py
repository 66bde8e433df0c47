"""Recipes: those that ship, and one line for whatever is wrong in one of the user's own."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import test_cli
from test_cli import run
from trustcxr import attacks, defences
from trustcxr.errors import UserError
from trustcxr.explain import METHODS
from trustcxr.models import factory
from trustcxr.recipes import parsing
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, format_recipe, load_study, run_recipe, shipped_recipes
from trustcxr.recipes.training_recipe import DefenceRecipe, ModelRecipe, TrainingRecipe


def load(tmp_path: Path, **keys: Any) -> StudyRecipe:
    return load_text(tmp_path, yaml.safe_dump({"name": "mine", "models": ["resnet18"]} | keys))


def load_text(tmp_path: Path, text: str) -> StudyRecipe:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    return load_study(tmp_path / "mine.yaml")


def complaint(tmp_path: Path, **keys: Any) -> str:
    with pytest.raises(UserError) as problem:
        load(tmp_path, **keys)
    message = str(problem.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'mine.yaml'}: ")
    return message


def test_splits_that_are_numbered_need_no_quotes(tmp_path: Path) -> None:
    text = "{name: mine, models: [resnet18], data: {splits: {train: 1, val: 2, test: '3'}}}"
    splits = load_text(tmp_path, text).data.splits
    assert (splits.train, splits.val, splits.test) == ("1", "2", "3")
    for wrong in (1.5, True):
        assert "expected a valid string" in complaint(tmp_path, data={"splits": {"train": wrong}})


@pytest.mark.expensive("paper", "twenty-one")
@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_loads_and_names_what_exists(name: str) -> None:
    recipe = load_study(name)
    assert recipe.name == name
    assert recipe.title
    for model in recipe.models:
        factory.check_network(model.name, size=recipe.data.size, **model.options())
    for defence in recipe.defences:
        defences.get(defence.name)
    for attack in recipe.evaluation.attacks:
        attacks.get(attack.name)
    assert all(method.split("@")[0] in METHODS for method in recipe.explanation.methods)
    radii = {a.name: set(a.epsilons) for a in recipe.evaluation.attacks}
    assert radii["fgsm"] == radii["pgd"]
    assert 0.02 in radii["pgd"]
    # The heart has a side; those that mirror chose it on validation.
    mirror = ("evidence", "localisation", "quick", "robustness", "side-by-side", "lungs", "twenty-one")
    assert recipe.training.augment.flip == (0.5 if name in mirror else 0)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_that_is_written_with_every_key_is_the_same(name: str, tmp_path: Path) -> None:
    assert load_text(tmp_path, format_recipe(name)) == load_study(name)


def test_every_key_of_a_written_recipe_is_there_and_says_what_it_means() -> None:
    text = format_recipe("quick")
    content = yaml.safe_load(text)
    assert set(content) == set(StudyRecipe.model_fields)
    assert set(content["training"]) == set(TrainingRecipe.model_fields)
    lines = {line.split(":")[0].strip(): line for line in text.splitlines() if line.startswith("  ")}
    assert lines["patience"] == "  patience: 8  # epochs without a better validation figure before training stops"
    assert lines["learning_rate"] == "  learning_rate: 0.001  # default: 0.0005"


def test_the_command_prints_lists_and_suggests(tmp_path: Path) -> None:
    assert run("recipe", "quick").stdout == format_recipe("quick")
    listed = run("recipe").stdout
    assert [line.split()[0] for line in listed.splitlines()] == shipped_recipes()
    assert load_study("quick").title in listed
    assert "unknown recipe 'quik': did you mean quick?" in test_cli.complaint("recipe", "quik")
    with pytest.raises(UserError, match=r"'quik': did you mean quick\?.*or a path that ends in \.yaml"):
        load_study("quik")
    with pytest.raises(UserError, match="no such recipe file"):
        load_study(tmp_path / "gone.yaml")


def test_quick_shows_a_network_that_hides_its_gradients_beside_its_cured_twin() -> None:
    quick = load_study("quick")
    first, twin, *_ = quick.models
    assert first.name == twin.name
    assert (first.options(), twin.options()) == ({}, {"normalisation": "group", "activation": "silu"})
    assert quick.selection.count == len(quick.models), "both are trained against attacks"


def test_the_paper_recipe_is_the_papers_and_twenty_one_is_it_in_small() -> None:
    paper, recipe = load_study("paper"), load_study("twenty-one")
    assert [model.name for model in paper.models] == list(factory.PAPER_MODELS)
    assert {model.weights for model in paper.models} == {"imagenet"}
    assert (paper.selection.count, paper.selection.by, paper.data.size) == (6, "accuracy", 224)
    assert [(d.name, d.epsilon) for d in paper.defences] == [("fgsm", 0.02)]
    assert {model.name for model in recipe.models} == {model.name for model in paper.models}
    assert recipe.selection == paper.selection
    assert [(d.name, d.epsilon, d.ramp) for d in recipe.defences] == [("fgsm", 0.02, 0.7)]
    assert {attack.name for attack in recipe.evaluation.attacks} == {"fgsm", "pgd", "worst-case"}
    with pytest.raises(UserError, match="does not take images of 64 pixels"):
        factory.check_network("InceptionV3", size=64)


def test_recipes_that_run_here_need_no_hub() -> None:
    for model in (model for name in ("demo", "quick", "twenty-one") for model in load_study(name).models):
        assert model.weights == "none" or model.name in factory._PACKAGED


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"trainig": {}}, ["unknown key 'trainig'", "did you mean training?"]),
        ({"models": [{"name": "vgg16", "wieghts": "none"}]}, ["'models.0.wieghts'", "did you mean weights"]),
        ({"training": {"own": 1}}, ["unknown key 'training.own'"]),
        ({"training": {"epochs": 0}}, ["key 'training.epochs'", "greater than or equal to 1", "not 0"]),
        ({"training": {"epochs": 2.5}}, ["key 'training.epochs'", "not 2.5"]),
        ({"training": {"learning_rate": float("inf")}}, ["key 'training.learning_rate'", "not inf"]),
        ({"training": {"precision": "16"}}, ["key 'training.precision'", "valid: 32-true, bf16-mixed, 16-mixed"]),
        ({"defences": [{"name": "fgsm", "epsilon": 4}]}, ["key 'defences.0.epsilon'", "less than or equal to 1"]),
        ({"evaluation": {"attacks": [{"name": "fgsm", "epsilons": [0.02, -1]}]}}, ["attacks.0.epsilons.1", "not -1"]),
        ({"evaluation": {"attacks": [{"name": "pdg"}]}}, ["evaluation.attacks.0.name", "fgsm, fgsm-rs, pgd", "'pdg'"]),
        ({"selection": {"by": "acc"}}, ["key 'selection.by'", "did you mean accuracy"]),
        ({"training": {"background": "swp"}}, ["'training.background': unknown value 'swp': did you mean swap?"]),
        ({"training": {"background": "black"}}, ["valid: full, swap, mask, emptied"]),
        ({"models": []}, ["key 'models'", "at least 1"]),
        ({"models": [{"name": "vgg16", "training": {"epoch": 1}}]}, ["training of vgg16", "did you mean epochs"]),
        ({"defences": [{"name": "fgsm", "training": {"epochs": 0}}]}, ["training of resnet18, fgsm", "'epochs'"]),
        ({"training": None}, ["key 'training'"]),
        (
            {"evaluation": {"corruptions": []}},
            ["'evaluation.corruptions': expected keys with values (names, severities), or the key left out, not []"],
        ),
        ({"models": ["vgg16", 3]}, ["key 'models.1': expected keys with values (name, label, weights, ", "), not 3"]),
        ({"defences": {}}, ["key 'defences': expected a list, not {}"]),
        ({"evaluation": {"bootstrap": 100_000_000_000}}, ["'evaluation.bootstrap'", "less than or equal to 100000"]),
        ({"seeds": [-1]}, ["key 'seeds.0'", "not -1"]),
        ({"training": {"weight_decay": float("inf")}}, ["key 'training.weight_decay'", "not inf"]),
        ({"data": {"size": 1_000_000}}, ["key 'data.size'", "not 1000000"]),
        ({"defences": [{"name": "trades", "beta": float("inf")}]}, ["key 'defences.0.beta'", "not inf"]),
        ({"data": {"splits": {"train": "Train", "test": "Train"}}}, ["data.splits: train and test are both Train"]),
    ],
)
def test_a_wrong_key_or_value_is_named(keys: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    message = complaint(tmp_path, **keys)
    for part in parts:
        assert part in message


A_FGSM = {"name": "pgd", "label": "a-fgsm"}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"models": ["ResNet18", "resnet18"]}, "key 'models': resnet18 is there twice"),
        ({"defences": ["fgsm", {"name": "fgsm", "epsilon": 0.01}]}, "key 'defences': fgsm is there twice"),
        ({"defences": ["standard"]}, "key 'defences': standard is there twice; the baselines are standard already"),
        ({"seeds": [0, 1, 0]}, "key 'seeds': 0 is there twice"),
        ({"evaluation": {"attacks": [{"name": "fgsm", "epsilons": [0.02, 0.02]}]}}, "fgsm at 0.02 is there twice"),
        ({"evaluation": {"attacks": [{"name": "pgd"}, {"name": "pgd"}]}}, "pgd at 0.02 with 20 steps is there twice"),
        ({"models": ["vgg16", {"name": "resnet18", "label": "VGG16"}]}, "'models': vgg16 is there twice; give each a"),
        ({"defences": [{"name": "fgsm", "label": "standard"}]}, "standard is there twice"),
        ({"defences": [{"name": "fgsm", "label": "../x"}]}, "'defences.0.label'"),
        (
            {"models": ["vgg16", {"name": "vgg16", "label": "vgg16-a"}], "defences": ["fgsm", A_FGSM]},
            "key 'label': vgg16-a-fgsm-s0 is there twice",
        ),
        ({"training": {"background": "swap"}, "defences": ["standard"]}, "the baselines are swap-standard already"),
    ],
)
def test_what_would_be_the_same_run_twice_is_refused(keys: dict[str, Any], text: str, tmp_path: Path) -> None:
    """Two runs of one name would share one folder: the second would be taken for done."""
    assert text in complaint(tmp_path, **keys)


def test_a_label_tells_two_settings_of_one_defence_and_of_one_network_apart(tmp_path: Path) -> None:
    networks = ["resnet18", {"name": "resnet18", "label": "Smooth", "normalisation": "group", "activation": "silu"}]
    defences = ["fgsm", {"name": "fgsm", "label": "fgsm-half", "epsilon": 0.01}]
    study = load(tmp_path, models=networks, defences=defences)
    runs = [run_recipe(study, m, d, 0) for m in study.models for d in (DefenceRecipe(), *study.defences)]
    endings = ("standard-s0", "fgsm-s0", "fgsm-half-s0")
    assert [run.name for run in runs] == [f"{m}-{e}" for m in ("resnet18", "smooth") for e in endings]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"training": {"balanced_by": "source"}}, "balanced_by: source does nothing without training.balanced: true"),
        ({"training": {"counterfactuals": {"epsilon": 0}}}, "counterfactuals.epsilon: 0.0 does nothing"),
        ({"training": {"counterfactuals": {"fills": ["mirror"]}}}, "leave counterfactuals.fills out"),
        ({"training": {"counterfactuals": {"healthy_class": "Norml"}}}, "healthy_class: Norml does nothing"),
        ({"training": {"tracking_uri": "http://x"}}, "does nothing without training.track: mlflow"),
        ({"training": {"label_smoothing": 1}}, "key 'training.label_smoothing': expected a number less than 1"),
        ({"training": {"warmup_epochs": 31}}, "warmup_epochs: 31 is more than the 30 epochs"),
        ({"training": {"weight_decay": 1e9}}, "takes all of the weights away"),
        ({"defences": [{"name": "pgd", "epsilon": 0}]}, "resnet18, pgd: pgd at epsilon 0 attacks nothing"),
        ({"defences": [{"name": "trades", "beta": 0}]}, "key 'defences.0.beta': expected a number greater than 0"),
        ({"models": ["plain3"], "defences": [{"name": "ibp", "regulariser": 0.5}]}, "set defence.ramp, such as 0.5"),
    ],
)
def test_what_would_do_nothing_is_refused(keys: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert text in complaint(tmp_path, **keys)


def test_a_key_that_one_run_of_a_study_uses_is_taken(tmp_path: Path) -> None:
    edited = {"name": "fgsm", "training": {"counterfactuals": {"share": 0.3}}}
    study = load(tmp_path, training={"counterfactuals": {"healthy_class": "Well"}}, defences=[edited])
    run = run_recipe(study, study.models[0], study.defences[0], 0)
    assert run.training.counterfactuals.healthy_class == "Well"
    assert run.training.counterfactuals.share == 0.3
    regular = {"name": "ibp", "regulariser": 0.5, "ramp": 0.6}
    assert load(tmp_path, models=["plain3"], defences=[regular]).defences[0].regulariser == 0.5


def test_attacks_that_only_look_alike_are_fine_and_names_alone(tmp_path: Path) -> None:
    pgd = [{"name": "pgd", "steps": 10}, {"name": "pgd", "steps": 20}, {"name": "fgsm", "epsilons": [0.01, 0.02]}]
    assert len(load(tmp_path, evaluation={"attacks": pgd}).evaluation.attacks) == 3
    assert load(tmp_path, defences=[]).defences == ()
    recipe = load(tmp_path, models=["VGG16", {"name": "resnet18", "weights": "none"}], defences=["fgsm"])
    assert [(m.name, m.weights) for m in recipe.models] == [("VGG16", "imagenet"), ("resnet18", "none")]
    assert recipe.defences[0].epsilon == 0.02


@pytest.mark.parametrize(
    ("content", "text"),
    [("a: [", "not readable as YAML"), ("- 1", "found list"), ("", "found nothing"), ("é", "YAML")],
)
def test_a_file_that_is_no_recipe(content: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(content, encoding="latin1")
    with pytest.raises(UserError, match=text) as problem:
        load_study(tmp_path / "broken.yaml")
    assert "\n" not in str(problem.value)
    assert str(tmp_path / "broken.yaml") in str(problem.value)


def test_a_key_that_stands_twice_is_refused_and_one_that_is_taken_over_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: .*key 'epochs' is there twice, in lines 4 and 5"):
        load_text(tmp_path, "name: a\nmodels: [resnet18]\ntraining:\n  epochs: 3\n  epochs: 30\n")
    shared = "name: a\nmodels:\n  - &one {name: resnet18, label: x}\n  - &two {<<: *one, label: y}\n"
    models = load_text(tmp_path, shared + "  - {<<: *two, label: z}\n").models
    assert [model.label for model in models] == ["x", "y", "z"]


def test_the_most_special_training_key_wins() -> None:
    training = TrainingRecipe(epochs=5, batch_size=8, learning_rate=0.1, patience=3)
    study = StudyRecipe(name="s", models=("resnet18",), training=training)
    model = ModelRecipe(name="resnet18", training={"epochs": 6, "batch_size": 16})
    defence = DefenceRecipe(name="fgsm", training={"epochs": 7, "augment": {"rotation": 1.0}})
    run = run_recipe(study, model, defence, 4)
    assert (run.training.epochs, run.training.batch_size, run.training.learning_rate) == (7, 16, 0.1)
    assert run.training.patience == 3
    assert run.training.augment.rotation == 1.0
    assert (run.seed, run.data, run.name) == (4, study.data, "resnet18-fgsm-s4")
    plain = run_recipe(study, model, DefenceRecipe(), 0)
    assert (plain.training.epochs, plain.name) == (6, "resnet18-standard-s0")


def test_a_recipe_comes_back_from_yaml_as_it_was(tmp_path: Path) -> None:
    recipe = load_study("demo")
    assert load_text(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json"))) == recipe
    run = run_recipe(recipe, recipe.models[0], recipe.defences[0], 0)
    assert parsing.validate(RunRecipe, run.model_dump(mode="json"), "run.yaml") == run


def test_numbers_as_yaml_1_1_reads_them(tmp_path: Path) -> None:
    """1e-4 without a point is text to YAML 1.1; here it is a number all the same."""
    text = "name: mine\nmodels: [resnet18]\ntraining: {learning_rate: 1e-4}\n"
    assert load_text(tmp_path, text).training.learning_rate == 1e-4
