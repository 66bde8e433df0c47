"""What the report works out itself: alarms, order, summary, and numbers as words."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from trustcxr.evaluation import gradient_masking, run_figures
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.registry import Effort
from trustcxr.report import formatting, key_findings, load, methods_text
from trustcxr.report.figures import pictures, svg
from trustcxr.report.figures.charts import accuracy_forests, epsilon_curves, saliency_forests
from trustcxr.report.tables import accuracy, provenance, robustness
from trustcxr.storage.schemas import Comparison, RandomWeights, RunDocument, StudyDocument


def _run(**document: Any) -> load.Run:
    found = RunDocument.model_validate({"model": "m", "defence": "fgsm", **document})
    if found.clean.model_fields_set:
        found.masking = gradient_masking.verdict(found)
        found.alarms += [alarm for alarm in run_figures.find_alarms(found) if alarm not in found.alarms]
    run = load.Run(found, Path("nowhere"), [])
    load.label_runs([run])
    return run


EMPTY = StudyDocument()


def _summary(runs: list[load.Run], study: StudyDocument = EMPTY) -> dict[str, str]:
    return key_findings.summarise(study, runs, key_findings.choose_headline(study, runs))


def _told(study: StudyDocument, runs: list[load.Run]) -> str:
    """All that the page says in words of a study."""
    compared = key_findings.describe_compared(runs, key_findings.choose_headline(study, runs))
    return " ".join([compared, *_summary(runs, study).values()])


def _attack(name: str, epsilon: float, accuracy: float) -> dict[str, Any]:
    return {"attack": name, "epsilon": epsilon, "accuracy": {"value": accuracy}}


def test_a_constant_network_raises_an_alarm_and_does_not_top_the_leaderboard() -> None:
    clean = {"accuracy": {"value": 0.35}, "constant_answer": 20 / 30}
    good, bad = (_run(clean=clean | {"accuracy": {"value": 0.35, "ci": [low, 0.8]}}) for low in (0.7, 0.3))
    assert ["66.7" in alarm.text for alarm in bad.metrics.alarms] == [True]
    assert good.metrics.alarms == []
    head = key_findings.choose_headline(EMPTY, [good, bad])
    assert [row[2].note for row in accuracy.leaderboard([good, bad], head).rows] == ["", "bad"]
    findings = key_findings.gather_alarms(load.StudyFolder(Path(), EMPTY, [], []), [good, bad])
    assert [(g.kind, len(g.lines)) for g in findings["groups"]] == [("no_better_than_constant", 1)]
    assert "No run is shown to be better" in key_findings.summarise(EMPTY, [bad], head)["Unperturbed"]
    # No attack changes one and the same answer: 38.5 % under every attack is more than most robust networks keep.
    common = {"constant_answer": 351 / 570, "n": 570}
    fixed = {"accuracy": {"value": 0.385, "ci": [0.34, 0.43]}} | common
    honest = {"accuracy": {"value": 0.8, "ci": [0.76, 0.83]}} | common
    runs = [
        _run(clean=fixed, attacks=[_attack("fgsm", 0.02, 0.385), _attack("pgd", 0.02, 0.385)]),
        _run(clean=honest, attacks=[_attack("fgsm", 0.02, 0.3), _attack("pgd", 0.02, 0.2)], defence="pgd"),
    ]
    head = key_findings.choose_headline(EMPTY, runs)
    assert [run.defence for run in key_findings.rank_runs(runs, head)] == ["pgd", "fgsm"]
    assert key_findings.best_by(runs, lambda run: run.attacked("pgd", 0.02)) is runs[1]
    verdicts = [row[2].text for row in robustness.masking(runs).rows]  # type: ignore[union-attr]
    assert verdicts == ["no verdict", "no sign"]


def test_the_best_run_is_named_with_its_lead() -> None:
    runs = (("fgsm", 0.8, [0.75, 0.85]), ("pgd", 0.78, [0.7, 0.84]), ("ibp", 0.6, [0.55, 0.65]))
    close, far, worst = (_run(clean={"accuracy": {"value": share, "ci": ends}}, defence=d) for d, share, ends in runs)
    chosen = ([close, far, worst], [far, worst], [close])
    found, without, alone = (_summary(runs)["Unperturbed"] for runs in chosen)
    assert f"2.0 points above the next ({far.label}; their intervals overlap)" in found
    assert f"18.0 points above the next ({worst.label})" in without
    assert "above the next" not in alone


def test_what_an_epoch_was_chosen_by_stands_with_its_epsilon() -> None:
    for training, said in (
        ({"monitor": "val_pgd_accuracy", "epsilon": 0.02}, "validation PGD accuracy at 0.02"),
        ({"monitor": "val_accuracy"}, "validation accuracy"),
    ):
        table = provenance.training([_run(training=training | {"best_value": 0.5})])
        assert table.rows[0][table.header.index("Chosen by")].text == said


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([[0.01, 0.03], [0.02, 0.05]], "agree better with the infection masks in 2 of 2 comparisons, worse in 0"),
        ([[-0.03, -0.01], [-0.04, 0.05]], "in 0 of 2 comparisons, worse in 1"),
        ([[0.01, 0.03], [-0.04, -0.02]], "in 1 of 2 comparisons, worse in 1"),
        ([None, None], "in 0 of 2 comparisons, worse in 0"),
    ],
)
def test_summary_can_say_yes_no_and_partly(intervals: list[Any], expected: str) -> None:
    figures = [{"difference": {"value": 0.1, "ci": ci}, "n": 120} for ci in intervals]
    rows = [Comparison.model_validate({"measure": "infection_energy", **found}) for found in figures]
    text = _told(StudyDocument(comparisons=rows), [_run(clean={"accuracy": {"value": 0.8}})])
    assert expected in text
    assert "120 images" in text


def test_measures_without_a_value_are_counted_and_the_centre_prior_stands_beside_chance(tmp_path: Path) -> None:
    part: dict[str, Any] = {"infection_energy": {"value": 0.2, "ci": [0.1, 0.3], "chance": 0.12}, "n": 3}
    rows = {"method": "gradcam", "condition": "clean", "measure": "infection_energy", "value": [0.1, None, 0.1]}
    pd.DataFrame(rows).to_parquet(tmp_path / "saliency.parquet")
    for centre, words in (({}, 0), ({"centre": 0.345}, 1)):
        part["infection_energy"] |= centre
        run = _run(saliency={"gradcam": part})
        run.folder = tmp_path
        (row,) = accuracy.explanations([run]).rows
        assert "n\u00a0=\u00a02" in row[3].second
        assert str(row).count("centre") == str(row).count("centre 0.345") == words


def test_of_two_pgds_the_stronger_counts_and_both_stand_on_the_page() -> None:
    pgds = [_attack("pgd", 0.02, accuracy) | {"steps": steps} for accuracy, steps in ((0.55, 10), (0.2, 40))]
    attacks = [_attack("fgsm", 0.02, 0.6), *pgds, _attack("pgd-l2", 0.02, 0.1) | {"steps": 20}]
    run = _run(clean={"accuracy": {"value": 0.8}}, attacks=attacks)
    head = key_findings.choose_headline(EMPTY, [run])
    assert [effort.name for effort in head.attacks] == ["FGSM", "PGD-10", "PGD-40", "PGD (L2)-20"]
    assert head.strongest == Effort("pgd", 40)
    assert run.attacked("pgd", 0.02).steps == 40
    assert run.attacked(Effort("pgd", 10), 0.02).accuracy.value == 0.55
    board = accuracy.leaderboard([run], head)
    assert board.rows[0][board.header.index("PGD-10 at 0.02, %")].text == "55.0"
    assert board.rows[0][board.header.index("PGD-40 at 0.02, %")].text == "20.0"
    swept = {row[2].text: row[3].text for row in accuracy.sweeps([run]).rows}
    assert swept == {"FGSM": "60.0", "PGD-10": "55.0", "PGD-40": "20.0", "PGD (L2)-20": "10.0"}
    assert "20.0\u00a0%" in key_findings.summarise(EMPTY, [run], head)["Under attack"]
    fewer = _run(clean={"accuracy": {"value": 0.8}}, attacks=[run.attacks[0].plain()])
    drawn, less = (svg.render_inline(epsilon_curves("m", [each]), "k") for each in (run, fewer))
    assert drawn.count("<path") > less.count("<path")
    shown = svg.legend([epsilon_curves("m", [run])])
    assert ["PGD-10" in entry or "PGD-40" in entry for entry in shown].count(True) == 2


def test_headlines_take_the_lowest_whatever_the_attack_is_called() -> None:
    """APGD-CE without PGD beside a stronger worst-case, and an attack that nobody listed in an order."""
    weak = _run(clean={"accuracy": {"value": 0.8}}, attacks=[_attack("pgd", 0.02, 0.5), _attack("apgd-ce", 0.02, 0.1)])
    held = _run(clean={"accuracy": {"value": 0.8}}, attacks=[_attack("pgd", 0.02, 0.4), _attack("apgd-ce", 0.02, 0.3)])
    head = key_findings.choose_headline(EMPTY, [weak, held])
    assert head.strongest == Effort("apgd-ce")
    assert key_findings.rank_runs([weak, held], head) == [held, weak]


def test_headline_epsilon_is_that_of_the_recipes_defence_that_has_one() -> None:
    """A recipe is written out with every key, so that mixup has an epsilon too, which nothing reads."""
    runs = [_run(attacks=[_attack("pgd", e, 0.5) for e in (0.005, 0.01, 0.02)])]
    for asked, chosen in ((0.01, 0.01), (0.3, 0.02)):
        defences = [{"name": "mixup"}, {"name": "fgsm", "epsilon": asked}]
        content = {"name": "x", "models": ["resnet18"], "defences": defences}
        for recipe in ({"defences": defences[1:]}, validate(StudyRecipe, content, "x").model_dump(mode="json")):
            assert key_findings.choose_headline(StudyDocument(recipe=recipe), runs).epsilon == chosen
    assert key_findings.choose_headline(EMPTY, runs).epsilon == 0.02
    assert key_findings.choose_headline(EMPTY, []).epsilon is None


def test_svg_keeps_text_and_ids_apart() -> None:
    runs = [_run(attacks=[_attack("pgd", 0.02, 0.5)], clean={"accuracy": {"value": 0.6}})]
    one, two = (svg.render_inline(epsilon_curves("$m_1$ <b>", runs), key) for key in ("k1", "k2"))
    assert "$m_1$ &lt;b&gt;" in one
    assert "xmlns" not in one
    assert not set(re.findall(r' id="([^"]+)"', one)) & set(re.findall(r' id="([^"]+)"', two))


def test_numbers_as_words() -> None:
    assert formatting.percent(0.8229) == "82.3\u00a0%"
    assert formatting.percent(None) == formatting.percent(float("nan")) == formatting.DASH
    assert [formatting.signed(value) for value in (-0.0004, 0.012, -0.012)] == ["0.000", "+0.012", "−0.012"]
    assert formatting.range_text([0.1, None]) == ""
    assert formatting.range_text([-0.002, -0.0002]) == "−0.002 to 0.000"
    assert formatting.range_text([-0.002, -0.0002], reveal=True) == "−0.0020 to −0.0002"
    assert formatting.range_text([-0.002, 0.0], reveal=True) == "−0.002 to 0.000"
    assert [formatting.attack(name) for name in ("pgd", "fgsm")] == ["PGD", "FGSM"]
    measures = ("pgd accuracy @0.02", "infection_energy", "val_pgd_accuracy", "lungs blacked out accuracy")
    words = ["PGD accuracy at 0.02", "infection energy", "validation PGD accuracy", "accuracy, lungs blacked out"]
    assert [formatting.measure(name) for name in measures] == words


def test_the_answer_leaves_out_what_is_alarmed_and_one_run_is_no_best() -> None:
    """A run whose gradients fail has the highest figure under attack, and is not the one that the answer names."""
    clean = {"accuracy": {"value": 0.8, "ci": [0.7, 0.9]}, "n": 90, "confusion": [[45, 0], [0, 45]]}
    honest = _run(model="honest", clean=clean, attacks=[_attack("fgsm", 0.02, 0.5), _attack("pgd", 0.02, 0.4)])
    masked = _run(model="masked", clean=clean, attacks=[_attack("pgd", 0.01, 0.6), _attack("pgd", 0.02, 0.7)])
    assert (honest.masked, masked.masked) == (False, True)
    head = key_findings.choose_headline(EMPTY, [masked, honest])
    said = list(key_findings.summarise(EMPTY, [masked, honest], head).values())
    assert len(said) == 3
    assert "honest · fgsm is most accurate: 40.0\u00a0%" in said[1]
    assert "1 run with failing gradients is left out" in said[1]
    assert [run.model for run in key_findings.rank_runs([masked, honest], head)] == ["honest", "masked"]
    rows = accuracy.models([honest, masked], head).rows
    assert [(row[2].text, row[4].note) for row in rows] == [("No alarm", ""), ("Gradients fail", "bad")]
    alone = _told(EMPTY, [honest])
    assert "best" not in alone
    assert "most" not in alone.replace("at most", "")
    assert "On unperturbed images its accuracy is 80.0\u00a0% (95\u00a0% CI 70.0 to 90.0, n\u00a0=\u00a090)." in alone
    assert "figures under attack are unreliable" in list(_summary([masked]).values())[1]


def test_methods_name_what_was_done_and_nothing_else() -> None:
    recipe = {
        "models": ["a", "b"],
        "training": {"epochs": 3, "refit": True, "background": "gate", "balanced": False},
        "defences": [{"name": "gaussian", "epsilon": 0.02, "sigma": 0.05}, {"name": "fgsm", "epsilon": 0.01}],
    }
    chosen = {"split": "Val", "by": "accuracy", "count": 1, "ranking": [{"model": "a", "value": 0.8, "chosen": True}]}
    study = StudyDocument.model_validate({"recipe": recipe, "selection": chosen})
    run = _run(saliency={"gradcam": {"infection_energy": {"value": 0.2}}})
    told = methods_text.write_methods(study, [run])
    assert "2 networks: a; b. Training: epochs 3, refit, background gate. The best" in told["Networks and training"]
    assert told["Robust training"] == (
        "Each of the chosen networks had standard training and Gaussian noise (Ford et al. 2019), sigma "
        "0.05; FGSM (Goodfellow et al. 2015), epsilon 0.01."
    )
    assert "random weights" not in told["Heatmaps"]
    run.metrics.saliency["gradcam"].random_weights = RandomWeights(n=9)
    assert "random weights" in methods_text.write_methods(study, [run])["Heatmaps"]


def test_methods_tell_what_each_network_and_way_of_training_says_of_its_own() -> None:
    asked = {
        "name": "x",
        "models": [
            {"name": "resnet18", "label": "other", "normalisation": "group"},
            {"name": "resnet10t", "training": {"epochs": 12}},
        ],
        "training": {"balanced": True, "epochs": 8, "augment": {"rotation": 3.0, "flip": 0.5}},
        "defences": [
            {"name": "fgsm", "attack_precision": "bf16", "training": {"balanced": False, "epochs": 9}},
            {"name": "trades", "beta": 3.0},
            {"name": "standard", "training": {"background": "swap"}},
        ],
    }
    recipe = validate(StudyRecipe, asked, "x").model_dump(mode="json")
    told = methods_text.write_methods(StudyDocument(recipe=recipe), [])
    networks, resisting = told["Networks and training"], told["Robust training"]
    assert "resnet18 (label other, weights imagenet, normalisation group)" in networks
    assert "resnet10t (weights imagenet, epochs 12)" in networks
    assert "epochs 8," in networks
    assert "guidance" not in networks, "of what is switched off nothing is told"
    fgsm, trades, swap = resisting.split("; ")
    assert [part for part in ("attack precision bf16", "balanced False", "epochs 9") if part not in fgsm] == []
    assert "rotation" not in fgsm
    assert "TRADES (Zhang et al. 2019), epsilon 0.02, steps 3, beta 3.0" in trades
    assert swap == "standard training, background swap."


def test_methods_say_where_a_machine_could_not_compute_in_what_was_asked_for() -> None:
    study = StudyDocument.model_validate({"recipe": {"models": ["a"], "training": {"precision": "bf16-mixed"}}})
    run = _run(training={"precision": "32-true", "precision_asked": "bf16-mixed"})
    as_asked = _run(training={"precision": "bf16-mixed", "precision_asked": "bf16-mixed"})
    told = [methods_text.write_methods(study, runs)["Networks and training"] for runs in ([run, as_asked], [as_asked])]
    assert f"{run.name} in 32-true" in told[0]
    assert "otherwise" not in told[1]


@pytest.mark.parametrize("ends", [[0.1, 0.3], [-0.3, -0.1]])
@pytest.mark.parametrize("better", ["higher", "lower", None])
def test_both_forest_plots_have_the_colour_of_the_table(better: str | None, ends: list[float]) -> None:
    said = {"model": "m", "defence": "fgsm", "better": better, "difference": {"value": sum(ends) / 2, "ci": ends}}
    row = Comparison.model_validate(said | {"measure": "infection_energy", "method": "gradcam"})
    note = accuracy.comparisons(StudyDocument(comparisons=[row])).rows[0][-1].note.split()[0]
    colour = {"good": svg.BETTER, "bad": svg.WORSE, "quiet": svg.QUIET}[note]
    assert (note == "quiet") == (better is None)
    of_accuracy = row.model_copy(update={"measure": "lungs_blacked_out accuracy", "method": None})
    for drawing in (*accuracy_forests([of_accuracy]), *saliency_forests([row]).values()):
        drawn = Figure()
        drawing.plot(drawn)
        assert {to_hex(line.get_color()) for line in drawn.axes[0].lines if line.get_marker() == "o"} == {colour}


def test_cells_are_drawn_only_for_the_method_that_has_them() -> None:
    run = _run(saliency={"gradcam": {"cells": "2 x 3"}, "layercam": {}})
    image = {"image": np.zeros((1, 8, 8), np.uint8), "saliency": np.ones((1, 8, 8))}

    def shown(**method: str) -> str:
        run.panels = image | {key: np.array([value]) for key, value in method.items()}
        return str([panel.lines for example in pictures.build_gallery([run])["examples"].values() for panel in example])

    assert "2 × 3 cells" in shown(method="gradcam")
    assert "cells" not in shown(method="layercam")
    assert "cells" not in shown(method="scorecam"), "of which nothing is known"
