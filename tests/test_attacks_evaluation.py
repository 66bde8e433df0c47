"""Attacks by name: in recipes, as typed, and in the table of predictions."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from docs_blocks import ROOT, blocks
from pack import Pack
from small_runs import seal
from trustcxr import attacks, registry
from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions, run_figures
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.recipes.evaluation_recipe import AttackRecipe, EvaluationRecipe
from trustcxr.recipes.parsing import validate
from trustcxr.report import terminal
from trustcxr.storage import atomic
from trustcxr.storage.schemas import RunDocument

ATTACK_OPTIONS = {name: dict(entry.options) for name, entry in registry.ATTACKS.items()}


@pytest.fixture(scope="module")
def run(pack: Pack) -> Run:
    return load_run(pack.run("standard"), on="cpu")


@pytest.fixture(scope="module")
def surrogate(pack: Pack) -> str:
    return str(pack.run("fgsm"))


@pytest.fixture(scope="module")
def radiographs(pack: Pack) -> Any:
    return pack.training_images()[1]


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_an_attack_has_the_options_that_it_takes(name: str) -> None:
    assert list(attacks.ATTACKS) == list(ATTACK_OPTIONS)
    extra = {"surrogate": "out/run"} if name == "transfer" else {}
    made = validate(AttackRecipe, {"name": name, **extra}, "test")
    assert {k: v for k, v in made.model_dump().items() if k in ATTACK_OPTIONS[name]} == ATTACK_OPTIONS[name] | extra
    assert made == AttackRecipe.model_validate(made.model_dump(mode="json")), "what was written is read again"
    for option, value in {"steps": 7, "queries": 70, "restarts": 2, "precision": "bf16", "surrogate": "x"}.items():
        if option in ATTACK_OPTIONS[name]:
            assert getattr(validate(AttackRecipe, {"name": name, **extra, option: value}, "test"), option) == value
        else:
            with pytest.raises(UserError, match=f"{name} has no option '{option}'; it takes "):
                validate(AttackRecipe, {"name": name, **extra, option: value}, "test")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"name": "pgd", "steps": 0}, "'steps'.*greater than or equal to 1"),
        ({"name": "square", "queries": 0}, "'queries'"),
        ({"name": "worst-case", "restarts": 0}, "'restarts'"),
        ({"name": "worst-case", "precision": "fp8"}, "'precision'.*'bf16'"),
        ({"name": "transfer"}, "transfer needs a surrogate"),
        ({"name": "pgd", "epsilons": [2]}, "L-infinity radius in pixel space: at most 1"),
        ({"name": "pgd-l2", "epsilons": [float("nan")]}, "epsilons"),
        ({"name": "pgd-l2", "epsilons": [-1]}, "epsilons"),
        ({"name": ["pgd"]}, "'name'"),
    ],
)
def test_what_cannot_be_is_refused(content: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text) as problem:
        validate(AttackRecipe, content, "test")
    assert "\n" not in str(problem.value)


def test_effort_tells_conditions_apart() -> None:
    efforts = {"fgsm": 1, "fgsm-rs": 1, "pgd": 20, "square": 1000, "worst-case": 50}
    assert {name: AttackRecipe(name=name).effort for name in efforts} == efforts


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ([{"name": "pgd", "epsilons": [0.02, 0.02]}], "pgd at 0.02 with 20 steps"),
        ([{"name": "transfer", "epsilons": [0.05], "surrogate": place} for place in "ab"], "transfer at 0.05"),
        ([{"name": "fgsm"}, {"name": "fgsm"}], "fgsm at 0.02"),
    ],
)
def test_a_repeated_condition_is_refused(asked: list[dict[str, Any]], named: str, run: Run, radiographs: Any) -> None:
    """Its rows would be pooled into one figure of twice the images."""
    attacks = [AttackRecipe(**content) for content in asked]
    with pytest.raises(UserError, match=f"{named}.* is there twice"):
        EvaluationRecipe(attacks=attacks)
    with pytest.raises(UserError, match=f"{named}.* is there twice"):
        predictions.predict(run, radiographs, attacks)


def test_an_option_that_no_attack_takes_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    predictions.conditions(["fgsm"], [0.02], steps=7)
    predictions.conditions(["fgsm", "pgd"], [0.02], queries=5)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in said] == [
        "steps 7: not used: fgsm do not take it",
        "queries 5: not used: fgsm, pgd do not take it",
    ]
    assert "pgd" in said[0].partition(";")[2]
    assert predictions.conditions(["fgsm", "pgd"], [0.02], steps=7)[1].steps == 7
    assert not capsys.readouterr().err


def test_options_go_to_the_attacks_that_take_them(surrogate: str) -> None:
    names = ["fgsm", "worst-case", "square", "transfer"]
    plan = predictions.conditions(names, [0.02], steps=7, queries=70, surrogate=Path(surrogate))
    assert [(a.name, a.steps, a.queries, a.surrogate) for a in plan] == [
        ("fgsm", None, None, None),
        ("worst-case", 7, 70, None),
        ("square", None, 70, None),
        ("transfer", 7, None, surrogate),
    ]
    assert predictions.conditions(["pgd-l2"], [2.0])[0].epsilons == (2.0,)
    for chosen, epsilon, options, text in (
        (["pgd", "pgd-l2"], 2.0, {}, r"epsilon 2 is outside \[0, 1\]"),
        (["transfer"], 0.02, {}, "transfer needs a surrogate"),
        (["pgd"], 0.02, {"surrogate": Path(surrogate)}, "only the attack transfer has one"),
        (["transfer"], 0.02, {"surrogate": Path("nowhere")}, "nowhere"),
        (["pgd"], 0.02, {"steps": 0}, "'steps'"),
    ):
        with pytest.raises(UserError, match=text):
            predictions.conditions(chosen, [epsilon], **options)


@pytest.mark.slow
def test_every_attack_has_its_rows(run: Run, radiographs: Any, surrogate: str) -> None:
    few: dict[str, Any] = {"steps": 3, "queries": 5, "surrogate": surrogate}
    plan = [
        AttackRecipe(name=name, epsilons=(0.05, 0.01), **{option: few[option] for option in few.keys() & options})
        for name, options in ATTACK_OPTIONS.items()
    ]
    table = predictions.predict(run, radiographs, plan, views=False, batch_size=8)
    counts = table[table["attack"] != "clean"].groupby(["attack", "epsilon", "steps"]).size().to_dict()
    assert counts == {(a.name, epsilon, a.effort): len(radiographs) for a in plan for epsilon in a.epsilons}
    right = np.stack(table["logits"]).argmax(1) == table["label"].to_numpy()
    shares = table.assign(right=right).groupby(["attack", "epsilon"])["right"].mean()
    for a in plan:
        if a.name != "pgd-l2":
            for epsilon in a.epsilons:
                assert shares["worst-case", epsilon] <= shares[a.name, epsilon], "what another found is kept"
    assert shares["worst-case", 0.05] <= shares["worst-case", 0.01] <= shares["clean", 0.0]
    document = run_figures.describe(run, table, resamples=100)
    assert {a["attack"] for a in document.plain()["attacks"]} == set(ATTACK_OPTIONS)


def test_worst_case_keeps_what_smaller_radii_found(run: Run, radiographs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, list[float]]] = []
    pixels = to_pixels(torch.from_numpy(np.array(radiographs.images)))

    def watched(model: Any, images: Any, labels: Any, *, epsilon: float, start: Any, **options: Any) -> Any:
        assert torch.equal(images, pixels)
        seen.append((epsilon, [round(float((known - images).abs().max()), 3) for known in start]))
        return real(model, images, labels, epsilon=epsilon, start=start, **options)

    real = attacks.worst_case_report
    monkeypatch.setattr(attacks, "worst_case_report", watched)
    plan = [
        AttackRecipe(name="worst-case", epsilons=(0.04, 0.02), steps=2, queries=2),
        AttackRecipe(name="fgsm", epsilons=(0.01, 0.04)),
        AttackRecipe(name="pgd-l2", epsilons=(0.02,), steps=2),
    ]
    predictions.predict(run, radiographs, plan, views=False)
    assert [(epsilon, len(known)) for epsilon, known in seen] == [(0.02, 1), (0.04, 3)]
    assert all(length <= epsilon + 1e-3 for epsilon, known in seen for length in known)


def test_transfer_is_the_surrogates_images_judged_here_and_names_it(run: Run, radiographs: Any, surrogate: str) -> None:
    pixels, labels = to_pixels(torch.from_numpy(np.array(radiographs.images))), torch.from_numpy(radiographs.labels)
    source = load_run(surrogate, on="cpu")
    made = attacks.momentum(source.model, pixels, labels, epsilon=0.05)
    with torch.inference_mode():
        expected = run.model(made)
    plan = [
        AttackRecipe(name="fgsm", epsilons=(0.05,)),
        AttackRecipe(name="transfer", epsilons=(0.05,), surrogate=surrogate),
    ]
    table = predictions.predict(run, radiographs, plan, views=False)
    found = torch.from_numpy(np.stack(table[table["attack"] == "transfer"]["logits"]))
    assert torch.allclose(found, expected, atol=1e-4)
    document = RunDocument.model_validate(run_figures.describe(run, table, resamples=50))
    assert {a.attack: a.surrogate for a in document.attacks} == {"fgsm": "", "transfer": source.name}
    shown = [row["condition"] for row in terminal.list_accuracies(document)]
    assert shown == ["clean", "FGSM", f"transfer-10 from {source.name}"]


def test_a_surrogate_with_other_classes(run: Run, radiographs: Any, surrogate: str, tmp_path: Path) -> None:
    other = shutil.copytree(surrogate, tmp_path / "other")
    content = atomic.read_yaml(other / "run.yaml")
    atomic.write_yaml(other / "run.yaml", content | {"classes": ["a", "b", "c"]})
    seal(other)
    plan = [AttackRecipe(name="transfer", surrogate=str(other))]
    with pytest.raises(UserError, match=r"not a surrogate for .*: its classes are a, b, c instead of COVID-19"):
        predictions.predict(run, radiographs, plan, views=False)


def add_attack(entry: registry.Attack, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an attack as CONTRIBUTING.md tells, until the test ends."""
    module = ModuleType("trustcxr.attacks.mine")
    vars(module)["mine"] = function
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.ATTACKS, entry.name, entry)
    monkeypatch.setitem(attacks.ATTACKS, entry.name, attacks.load_attack(entry))


def written() -> tuple[registry.Attack, Callable[..., Any]]:
    """Return the entry and the function of the example."""
    found = [block.text for block in blocks(ROOT / "CONTRIBUTING.md") if block.language == "python"]
    code, entry = (
        next(text for text in found if text.startswith(start)) for start in ("import torch", 'Attack("mine"')
    )
    names: dict[str, Any] = {}
    exec(code, names)
    return eval(entry, {"Attack": registry.Attack}), names["mine"]


def test_the_attack_of_contributing_runs(run: Run, radiographs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, function = written()
    add_attack(entry, function, monkeypatch)
    table = predictions.predict(run, radiographs, predictions.conditions(["mine"], [0.02], steps=2))
    moved = table.loc[table["attack"] == "mine", "moved"]
    assert 0 < moved.max() <= 0.02 + 1e-6


def test_an_attack_that_takes_no_seed_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, _ = written()
    with pytest.raises(UserError, match=r"^attack mine: mine:mine does not take seed\. Add it"):
        add_attack(entry, lambda model, images, labels, *, epsilon, steps: images, monkeypatch)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda images: images + 0.03, "attack mine: "),
        (lambda images: (images + 0.03).clamp(0, 1), r"it changes an image by 0\.03, more than epsilon 0\.02"),
        (lambda images: images * float("nan"), r"its pixels span \[nan, nan\]"),
        (lambda images: images[:1], "Return as many"),
    ],
)
def test_an_own_attack_stays_within_epsilon(
    change: Callable[[Any], Any], complaint: str, run: Run, radiographs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, _ = written()
    add_attack(entry, lambda model, images, labels, *, epsilon, steps, seed: change(images), monkeypatch)
    with pytest.raises(UserError, match=complaint):
        predictions.predict(run, radiographs, predictions.conditions(["mine"], [0.02]))
