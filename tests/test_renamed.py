"""Names of earlier versions are read as the names of today, in recipes, in old runs, when typed and when called."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trustcxr import attacks, models, renamed
from trustcxr.errors import UserError
from trustcxr.recipes import study as studies
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.recipes.training import DefenceRecipe, ModelRecipe, TrainingRecipe
from trustcxr.recipes.validation import assign, validate
from trustcxr.results import files

OLD = Path(__file__).parent / "studies" / "v0.1"


@pytest.mark.parametrize(
    ("kind", "about", "old", "new"),
    [
        (ModelRecipe, {"name": "resnet18"}, {"first_pool": False}, {"stem_pool": False}),
        (ModelRecipe, {"name": "resnet18"}, {"copies": 3}, {"members": 3}),
        (TrainingRecipe, {}, {"rrr": 0.5}, {"outside_gradient": 0.5}),
        (AttackRecipe, {"name": "transfer"}, {"source": "a/run"}, {"surrogate": "a/run"}),
        (TrainingRecipe, {}, {"background": "gate-emptied"}, {"lung_gate": True, "empty_lungs": True}),
        (TrainingRecipe, {}, {"background": "gate"}, {"lung_gate": True}),
        (TrainingRecipe, {}, {"background": "emptied"}, {"empty_lungs": True, "lung_gate": False}),
        (DefenceRecipe, {"name": "fgsm"}, {"background": "gate-emptied"}, {"lung_gate": True, "empty_lungs": True}),
        (DefenceRecipe, {"name": "fgsm"}, {"training": {"rrr": 1.0}}, {"training": {"outside_gradient": 1.0}}),
        (ModelRecipe, {"name": "x"}, {"training": {"background": "gate"}}, {"training": {"lung_gate": True}}),
    ],
)
def test_an_old_key_of_a_recipe_says_what_the_new_one_says(
    kind: type[Any], about: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
) -> None:
    made = validate(kind, about | new, "recipe")
    assert validate(kind, about | old, "recipe") == made
    assert made != (validate(kind, about, "recipe") if kind is not AttackRecipe else None), "it says something"
    assert validate(kind, made.model_dump(mode="json"), "what was written") == made


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"training": {"rrr": 1, "outside_gradient": 1}}, "rrr is the former name of outside_gradient: give one"),
        ({"models": [{"name": "resnet18", "copies": 2, "members": 2}]}, "copies is the former name of members"),
        ({"training": {"lung_gate": "maybe"}}, "lung_gate is true or false, not 'maybe'"),
        ({"training": {"background": "swap", "lung_gate": True}}, "not with background: swap"),
        ({"training": {"background": "gate", "lung_gate": False}}, "background: gate says the opposite of lung_gate"),
        ({"training": {"lung_gat": True}}, "did you mean lung_gate"),
        ({"training": {"background": "gat", "lung_gate": True}}, "background"),
        ({"defences": [{"name": "fgsm", "training": {"rrr": 1, "outside_gradient": 0}}]}, "former name"),
    ],
)
def test_a_recipe_that_says_both_or_neither_is_refused(content: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        validate(StudyRecipe, {"name": "a", "models": ["resnet18"]} | content, "a.yaml")
    assert "\n" not in str(caught.value)


def test_a_more_special_place_says_the_whole_background() -> None:
    content = {
        "name": "a",
        "models": ["resnet18"],
        "training": {"empty_lungs": True, "outside_gradient": 1.0},
        "defences": [{"name": "fgsm", "lung_gate": True, "training": {"rrr": 2.0}}],
    }
    study = validate(StudyRecipe, content, "a.yaml")
    standard, robust = (
        studies.run_recipe(study, study.models[0], defence, 0) for defence in (DefenceRecipe(), *study.defences)
    )
    assert (standard.background, standard.training.outside_gradient) == ("emptied", 1.0)
    assert (robust.background, robust.training.outside_gradient) == ("gate", 2.0)
    assert (robust.lung_gate, robust.empty_lungs) == (True, False)
    assert robust.name == "resnet18-gate-fgsm-s0"


@pytest.mark.parametrize(
    ("pair", "key"),
    [
        ("model.first_pool=false", {"model": {"name": "resnet18", "stem_pool": False}}),
        ("model.copies=2", {"model": {"name": "resnet18", "members": 2}}),
        ("training.rrr=3", {"training": {"outside_gradient": 3.0}}),
        ("training.lung_gate=true", {"training": {"background": "gate"}}),
    ],
)
def test_old_and_new_keys_can_be_typed(pair: str, key: dict[str, Any]) -> None:
    content = {"model": {"name": "resnet18"}, "training": {"background": "full"}}
    assert validate(RunRecipe, assign(content, [pair]), "--set") == validate(RunRecipe, content | key, "recipe")


def test_a_run_of_version_0_1_has_its_keys_under_the_names_of_today() -> None:
    stored = files.read_yaml(OLD / "runs" / "test_resnet-fgsm-s0" / "run.yaml")["recipe"]
    assert {"first_pool", "copies"} <= set(stored["model"])
    stored["model"] |= {"first_pool": False, "copies": 2}
    stored["training"] |= {"rrr": 0.25, "background": "gate-emptied"}
    read = validate(RunRecipe, stored, "run.yaml")
    assert (read.model.stem_pool, read.model.members, read.training.outside_gradient) == (False, 2, 0.25)
    assert (read.lung_gate, read.empty_lungs) == (True, True)
    written = read.model_dump(mode="json")
    assert {"stem_pool", "members"} <= set(written["model"])
    assert written["training"]["background"] == "gate-emptied", "what is written says it in the word of the design"


def test_old_keywords_still_call() -> None:
    old, new = (
        models.build("resnet10t", classes=3, **options)  # type: ignore[arg-type]
        for options in ({"first_pool": False, "copies": 2}, {"stem_pool": False, "members": 2})
    )
    assert list(old.state_dict()) == list(new.state_dict())
    images, labels = torch.rand(2, 1, 32, 32), torch.tensor([0, 1])
    other = models.build("resnet10t", classes=3).eval()
    made = [
        attacks.transfer(new.eval(), images, labels, epsilon=0.02, steps=1, **{key: other})  # type: ignore[arg-type]
        for key in ("source", "surrogate")
    ]
    assert torch.equal(*made)
    with pytest.raises(ValueError, match="source is the former name of surrogate"):
        attacks.transfer(new, images, labels, epsilon=0.02, source=other, surrogate=other)  # type: ignore[call-arg]


def test_keys_keep_their_order_and_what_is_not_renamed() -> None:
    assert list(renamed.keys({"a": 1, "old": 2, "b": 3}, {"old": "new"}).items()) == [("a", 1), ("new", 2), ("b", 3)]
