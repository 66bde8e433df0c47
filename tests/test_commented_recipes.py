"""`trustcxr recipe`: a recipe of the package with every key, to make one's own of."""

from pathlib import Path

import pytest
import yaml

from test_cli import complaint, run
from trustcxr.recipes import study_recipe
from trustcxr.recipes.study_recipe import StudyRecipe, load_study, shipped_recipes
from trustcxr.recipes.training_recipe import TrainingRecipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_what_is_written_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(study_recipe.format_recipe(name))
    assert load_study(path) == load_study(name)


def test_every_key_is_there_and_says_what_it_means() -> None:
    text = study_recipe.format_recipe("quick")
    content = yaml.safe_load(text)
    assert set(content) == set(StudyRecipe.model_fields)
    assert set(content["training"]) == set(TrainingRecipe.model_fields)
    line = next(line for line in text.splitlines() if line.strip().startswith("patience:"))
    assert line == "  patience: 8  # epochs without a better validation figure before training stops"
    rate = next(line for line in text.splitlines() if line.strip().startswith("learning_rate:"))
    assert rate == "  learning_rate: 0.001  # default: 0.0005"


def test_the_command_prints_lists_and_suggests() -> None:
    assert run("recipe", "quick").stdout == study_recipe.format_recipe("quick")
    listed = run("recipe").stdout
    assert [line.split()[0] for line in listed.splitlines()] == shipped_recipes()
    assert load_study("quick").title in listed
    assert "unknown recipe 'quik': did you mean quick?" in complaint("recipe", "quik")


def test_quick_shows_a_network_that_hides_its_gradients_beside_its_cured_twin() -> None:
    quick = load_study("quick")
    first, twin, *_ = quick.models
    assert first.name == twin.name
    assert (first.options(), twin.options()) == ({}, {"normalisation": "group", "activation": "silu"})
    assert quick.selection.count == len(quick.models), "both are trained against attacks"
