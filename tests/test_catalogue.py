"""Every name once: what the catalogue says is what the functions are, and a toy of each kind is found everywhere."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trustcxr import attacks, corruptions, defences, explain, registry
from trustcxr.cli import app
from trustcxr.data import layouts
from trustcxr.recipes import training_recipe
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.training_recipe import DefenceRecipe
from trustcxr.registry import Method


def test_registries_and_recipes_are_the_catalogue() -> None:
    assert list(attacks.ATTACKS) == list(registry.ATTACKS)
    assert list(defences.DEFENCES) == list(registry.DEFENCES)
    assert list(corruptions.CORRUPTIONS) == list(registry.CORRUPTIONS)
    assert list(layouts.LAYOUTS) == list(registry.LAYOUTS)
    assert list(explain.METHODS) == list(registry.SALIENCY)
    assert list(training_recipe.Background.__args__) == list(registry.BACKGROUNDS)  # type: ignore[attr-defined]
    assert {name for name, entry in registry.BACKGROUNDS.items() if entry.gate} == {"gate", "gate-emptied"}
    for entry in registry.DEFENCES.values():
        assert set(entry.options) <= set(DefenceRecipe.model_fields), entry.name


@pytest.mark.parametrize("name", [name for name, entry in registry.DEFENCES.items() if entry.function])
def test_a_defence_has_a_sentence_of_its_own(name: str) -> None:
    function = registry.load_function("defences", registry.DEFENCES[name].function)
    assert inspect.isfunction(function), "its docstring stands in the reference"
    assert inspect.getdoc(function)


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_what_an_attack_takes_is_in_its_signature(name: str) -> None:
    entry = registry.ATTACKS[name]
    takes = inspect.signature(registry.load_function("attacks", entry.function)).parameters
    loose = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    flags = {"seed": entry.seeded, "stop_when_wrong": entry.stops_when_wrong}
    assert loose or {*entry.options, *entry.fixed, *(flag for flag, set_ in flags.items() if set_)} <= set(takes)


def test_the_steps_of_every_attack_are_said_as_they_are() -> None:
    said = "20 for pgd and pgd-l2, 10 for momentum and transfer, 50 for the others"
    assert registry.format_steps() == said
    assert said in " ".join(CliRunner().invoke(app, ["evaluate", "--help"]).stdout.replace("│", "").split())
    assert str(AttackRecipe.model_fields["steps"].description).endswith(said)


def test_every_entry_says_what_it_is_called_and_labels_differ() -> None:
    for table in (registry.ATTACKS, registry.DEFENCES, registry.CORRUPTIONS, registry.SALIENCY, registry.MEASURES):
        labels = [entry.label for entry in table.values()]
        assert all(labels)
        assert len(set(labels)) == len(labels)


def test_what_needs_no_steps_shows_none() -> None:
    shown = {("pgd", 20): "PGD-20", ("fgsm", 1): "FGSM", ("unheard-of", 3): "unheard-of-3"}
    shown |= {("worst-case", 50, 1000): "worst-case-50/1000", ("worst-case", 50): "worst-case-50"}
    shown |= {("worst-case",): "worst-case", ("square", 300, 300): "Square-300", ("square", 300): "Square-300"}
    assert {attack: registry.format_attack(*attack) for attack in shown} == shown


def test_a_method_is_its_name_and_a_layer() -> None:
    assert Method.parse("LayerCAM@gate") == Method("layercam", "gate")
    assert str(Method("layercam", "-2")) == "layercam@-2"
    assert Method.parse("gradcam").layer is None


def test_the_catalogue_needs_no_torch() -> None:
    code = "import sys, trustcxr.registry; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


TOY = '''
"""A toy of each kind, as somebody would write it outside the package."""
import torch

def attack(model, images, labels, *, epsilon, steps=3):
    return (images + epsilon).clamp(0, 1)

def defence(model, images, labels, *, epsilon=0.02, label_smoothing=0.0):
    logits = model(images)
    return torch.nn.functional.cross_entropy(logits, labels), logits

corruption = lambda images, severity, draws: images * (1 - severity / 10)
layout = lambda root: None
combine = lambda features, gradient: features.abs().sum(1)
measure = lambda maps, mask: (maps * mask).flatten(1).amax(1)
'''

ENTRIES = """
import sys
sys.path[:0] = sys.argv[1:]
from trustcxr import registry as c

toy = c.Attack("toyattack", "Toy", "", "toys.kinds:attack", {"steps": 3}, shows_steps=True, seeded=False)
c.ATTACKS["toyattack"] = toy
c.DEFENCES["toydefence"] = c.Defence("toydefence", "toy defence", "", "toys.kinds:defence", ("epsilon",), "#123456")
c.CORRUPTIONS["toyhaze"] = c.Corruption("toyhaze", "toy haze", "a toy", function="toys.kinds:corruption")
c.LAYOUTS["toylayout"] = c.Layout("toylayout", "a toy", "toys.kinds:layout")
c.SALIENCY["toycam"] = c.Saliency("toycam", "ToyCAM", "", combine="toys.kinds:combine", baseline="activation")
c.MEASURES["infection_toy"] = c.Measure("infection_toy", "infection toy", "higher", "toys.kinds:measure", "infection")
c.AGAINST_MASKS = tuple(m.name for m in c.MEASURES.values() if m.function)  # as the catalogue reads it off its entries
"""

FOUND_EVERYWHERE = """
import torch
from typer.testing import CliRunner
from trustcxr import attacks, corruptions, defences, explain
from trustcxr.cli import app
from trustcxr.data import layouts
from trustcxr.explain import baseline_scores as scores
from trustcxr.recipes.evaluation_recipe import AttackRecipe, CorruptionsRecipe, ExplanationRecipe
from trustcxr.recipes.training_recipe import DefenceRecipe
from trustcxr.report import formatting as words
from trustcxr.report.figures.svg import defence_colour

for pair in ("train toydefence", "evaluate toyattack", "evaluate toyhaze", "explain toycam"):
    command, name = pair.split()
    assert name in "".join(CliRunner().invoke(app, [command, "--help"]).output.replace("│", "").split())
assert AttackRecipe(name="toyattack").steps == 3
assert DefenceRecipe(name="toydefence").attacks
assert ("toyhaze", 3) in CorruptionsRecipe(severities=(3,)).conditions()
assert ExplanationRecipe(methods=("ToyCAM@-2",)).methods == ("toycam@-2",)
assert attacks.get("toyattack") and defences.get("toydefence") and layouts.LAYOUTS["toylayout"]
images = torch.rand(2, 1, 16, 16)
assert corruptions.corrupt(images, "toyhaze", 5, keys=["a", "b"]).shape == images.shape
nn = torch.nn
net = nn.Sequential()
net.add_module("conv", nn.Conv2d(1, 4, 3))
net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)])
assert explain.methods.maps(net, images, None, ["toycam@conv"])["toycam@conv"].shape == (2, 16, 16)
maps, mask = torch.rand(2, 16, 16), torch.ones(2, 16, 16) > 0
masks = scores.Masks(infection=mask, lung=mask)
assert "infection_toy" in scores.score_maps(maps, masks, None)
assert "infection_toy" in scores.score_chance(maps, masks, None)
assert (c.format_attack("toyattack", 3), words.corruption("toyhaze")) == ("Toy-3", "toy haze")
assert (words.method("toycam@-2"), words.measure("infection_toy")) == ("ToyCAM, stage \\u22122", "infection toy")
assert defence_colour("toydefence") == "#123456"
print("found")
"""

FOUND_IN_THE_REPORT = """
import json
from pathlib import Path
from study_fixture import make_study
from trustcxr import report
from trustcxr.report import study_html as pages
from trustcxr.report import load as study_folder
from trustcxr.report.tables import table as cells

folder = make_study(
    Path(sys.argv[1]) / "study", models=("ResNet18",), defences=("standard", "toydefence"), panels=0, images=60,
    attacks=("fgsm", "toyattack"), corrupted=(("toyhaze", 1), ("toyhaze", 5)),
)
document = json.loads((folder / "study.json").read_text())
document["data"]["layout"] = "toylayout"
toy = {"infection_toy": {"value": 0.25, "ci": [0.2, 0.3], "chance": 0.125}}
for run in document["runs"]:
    run["saliency"] = {"toycam@-2": run["saliency"]["gradcam"] | toy}
row = {"difference": {"value": 0.0625, "ci": [0.05, 0.07]}, "standard": 0.25, "robust": 0.3125, "n": 20}
row |= {"model": "ResNet18", "defence": "toydefence", "measure": "infection_toy", "method": "toycam@-2"}
document["comparisons"].append(row)
(folder / "study.json").write_text(json.dumps(document))
page = report.write(folder).read_text()

def table(name):
    part = page[page.index(f'aria-label="{name}"'):]
    return part[: part.index("</table>")]

board = table("Leaderboard")
assert "Toy-1 at 0.02, %" in board and ">toydefence<" in board
assert "Toy-1" in table("Accuracy at each epsilon")
assert "toy haze" in table("Accuracy on corrupted images")
assert page.count("toy haze") > 2, "and a row of the shaded tables"
measures = table("Every measure of the explanations")
assert "ToyCAM, stage \u22122" in measures and "infection toy" in measures and "0.250</data>" in measures
assert "infection toy" in table("Standard against robust") and "+0.062" in table("Standard against robust")
assert "layout toylayout" in page
assert "#123456" in page, "the defence's colour in a figure"
text = "".join(table.markdown() for table in cells.find_tables(pages.gather_parts(study_folder.load_report(folder))))
assert "| Toy-1 |" in text and "infection toy |" in text and "ToyCAM, stage \u22122" in text
print("found")
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [FOUND_EVERYWHERE, FOUND_IN_THE_REPORT], ids=["names and registries", "report"])
def test_a_toy_of_each_kind_is_found_everywhere(tmp_path: Path, script: str) -> None:
    """In help, recipes and registries; in tables, figures and a rendered report: with no other file touched."""
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "kinds.py").write_text(TOY)
    command = [sys.executable, "-c", ENTRIES + script, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "found", done.stderr


def test_a_function_of_ones_own_is_named_with_its_package() -> None:
    assert registry.load_function("attacks", "pgd:pgd") is importlib.import_module("trustcxr.attacks.pgd").pgd
    assert registry.load_function("attacks", "trustcxr.attacks.apgd:fab") is attacks.fab
