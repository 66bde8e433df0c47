"""exam-1 is one recipe: what an audit tries is written there, and never changes under the same name."""

import inspect
from pathlib import Path

import pytest
import torch

from trustcxr.attacks import adaptive
from trustcxr.audit import active_test, attack_runner, audit_data
from trustcxr.errors import UserError
from trustcxr.recipes.protocol import load_exam
from trustcxr.registry import STOCHASTIC_DRAWS


def default(function: object, name: str) -> object:
    return inspect.signature(function).parameters[name].default  # type: ignore[arg-type]


def test_the_efforts_that_stand_in_the_code_are_those_of_the_published_audits() -> None:
    efforts = {
        "threshold_steps": attack_runner.THRESHOLD_STEPS,
        "longer": adaptive.LONGER,
        "climbs": adaptive.CLIMBS,
        "draws": STOCHASTIC_DRAWS,
        "surrogate_images": audit_data.SURROGATE_IMAGES,
        "surrogate_steps": default(adaptive.distil, "steps"),
        "planted_steps": active_test.STEPS,
        "planted_found": active_test.ENOUGH,
    }
    assert list(efforts.values()) == [10, 10, 6, 16, 256, 300, 40, 0.95]


def test_exam_1_is_what_it_was_when_audits_were_published() -> None:
    """Its attacks, radii, budgets, corruptions and seeds (a batch's number is its seed), word for word."""
    exam = load_exam("exam-1")
    assert exam.version == "exam-1"
    assert [(a.name, a.epsilons, a.steps, a.queries) for a in exam.attacks] == [
        ("fgsm", (0.01, 0.02), None, None),
        ("pgd", (0.005, 0.01, 0.02), 20, None),
        ("square", (0.02,), None, 100),
        ("worst-case", (0.02,), 20, 50),
    ]
    assert [(a.name, a.epsilons, a.steps, a.queries) for a in exam.without_gradients] == [
        ("square", (0.01,), None, 300),
        ("square", (0.02,), None, 600),
        ("worst-case", (0.02,), 20, 50),
    ]
    guards = exam.guards
    assert (guards.images, guards.queries, guards.agreement) == (64, 1000, 0.8)
    assert (guards.large_epsilon, guards.large_images, guards.large_queries) == (0.3, 16, 300)
    assert (exam.corruptions.names, exam.corruptions.severities) == ("all", (3,))
    assert (exam.entry_checks.images, exam.entry_checks.epsilon, exam.entry_checks.planted) == (120, 0.02, 16)
    assert (exam.batch_size, exam.bootstrap) == (32, 2000)


def test_the_number_of_a_batch_is_the_seed_of_its_attacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from trustcxr.data import load_dataset
    from trustcxr.data.phantom import write_files
    from trustcxr.evaluation import predictions
    from trustcxr.evaluation.trained_run import ModelUnderTest
    from trustcxr.recipes.evaluation_recipe import AttackRecipe

    radiographs = load_dataset(write_files.write(tmp_path / "images", {"Test": 3}, size=32), "Test", 32)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 3)).eval()
    seeds = []

    def carry_out(attack: AttackRecipe, images: torch.Tensor, *_: object) -> torch.Tensor:
        seeds.append(_[-1]["seed"])  # type: ignore[index]
        return images

    asked = ModelUnderTest("net", net, radiographs.classes, torch.device("cpu"))
    pgd = AttackRecipe(name="pgd", epsilons=(0.02,), steps=1)
    predictions.predict(asked, radiographs, [pgd], views=False, batch_size=4, carry_out=carry_out, at_once=False)
    assert seeds == [0, 1, 2]


def test_other_options_are_no_version_of_it() -> None:
    assert load_exam().changed(("pgd",), (0.01,)).version is None
    assert load_exam().changed() == load_exam()
    with pytest.raises(UserError, match="--attack transfer: an audit has no surrogate to attack in its place"):
        load_exam().changed(("transfer",))


@pytest.mark.parametrize("epsilon", [0.0, -0.01, float("nan")])
def test_a_radius_of_nothing_is_no_attack(epsilon: float) -> None:
    with pytest.raises(UserError, match=f"--epsilon {epsilon:g}: an attack needs a radius above 0"):
        load_exam().changed((), (0.02, epsilon))
