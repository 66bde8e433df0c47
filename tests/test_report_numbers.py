"""What the report works out itself: alarms, order, summary, and numbers as words."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from trustcxr.recipes.study import StudyRecipe, load_study
from trustcxr.recipes.validation import validate
from trustcxr.report import alarms, answers, methods, ranking, study_folder, summary, words
from trustcxr.report.figures import legends, pictures, saliency, svg
from trustcxr.report.figures.accuracy import epsilon_curves, forest
from trustcxr.report.tables import leaderboard, models, provenance, robustness
from trustcxr.report.tables.comparisons import comparisons
from trustcxr.report.terminal import leaderboard as leaderboard_in_terminal
from trustcxr.results.documents import Comparison, Document, RandomWeights, RunDocument, SaliencyDocument, StudyDocument
from trustcxr.results.flat import understood


def _run(**document: Any) -> study_folder.Run:
    run = study_folder.Run(_read(RunDocument, {"model": "m", "defence": "fgsm", **document}), Path("nowhere"), [])
    study_folder.label([run])
    return run


EMPTY = StudyDocument()


def _told(study: StudyDocument, runs: list[study_folder.Run]) -> str:
    """All that the page says in words of a study."""
    head = ranking.headline(study, runs)
    points = [point.text for point in summary.points(study, runs, head)]
    return " ".join([answers.asked(runs, head), *answers.sentences(study, runs, head), *points])


def _read(kind: type[Any], content: dict[str, Any]) -> Any:
    found, lost = understood(kind, content)
    assert isinstance(found, Document)
    assert not lost
    return found


def _attack(name: str, epsilon: float, accuracy: float) -> dict[str, Any]:
    return {"attack": name, "epsilon": epsilon, "accuracy": accuracy}


def test_masked_gradients_raise_an_alarm_and_honest_ones_do_not() -> None:
    """The one judge's signs, whatever document a run has: none of these has a verdict of its own."""

    def kinds(*rows: dict[str, Any]) -> list[str]:
        return [alarm.kind for alarm in _run(clean={"accuracy": 0.8}, attacks=[*rows]).metrics.alarms]

    assert kinds(_attack("fgsm", 0.02, 0.62), _attack("pgd", 0.02, 0.01)) == ["fgsm_overstates"]
    assert kinds(_attack("fgsm", 0.02, 0.62), _attack("pgd", 0.02, 0.53)) == []
    assert kinds(_attack("pgd", 0.01, 0.3), _attack("pgd", 0.02, 0.4)) == ["rising_with_epsilon"]
    assert kinds(_attack("pgd", 0.02, 0.3), _attack("pgd", 0.01, 0.4)) == []


def test_a_constant_network_raises_an_alarm() -> None:
    clean = {"accuracy": 0.35, "confusion": [[10, 0], [10, 10]]}
    good, bad = (_run(clean=clean | {"accuracy_ci": [low, 0.8]}) for low in (0.7, 0.3))
    assert ["66.7" in alarm.text for alarm in bad.metrics.alarms] == [True]
    assert good.metrics.alarms == []
    head = ranking.headline(EMPTY, [good, bad])
    assert [row[2].note for row in leaderboard.leaderboard([good, bad], head).rows] == ["", "bad"]
    findings = alarms.find(study_folder.StudyFolder(Path(), EMPTY, [], []), [good, bad])
    assert findings.runs_with("no_better_than_constant") == 1
    assert "In 1 of 2 runs clean accuracy is not shown" in _told(EMPTY, [good, bad])
    assert "No run is shown to be better" in answers.sentences(EMPTY, [bad], head)[0]


def test_the_mean_recall_of_the_classes_has_the_interval_of_balanced_accuracy() -> None:
    """They are one figure; near 0 and 1 its score interval is wider than that of the resamples."""
    same = {"recall_macro": 0.99, "recall_macro_ci": [0.98, 1.0]}
    run = _run(clean={"balanced_accuracy": 0.99, "balanced_accuracy_ci": [0.95, 0.998], **same})
    head = ranking.headline(EMPTY, [run])
    [first], [of_classes] = leaderboard.leaderboard([run], head).rows, leaderboard.per_class(run, ()).rows
    assert of_classes[2] in first
    assert of_classes[2].small == "95.0 to 99.8"


def test_a_constant_network_does_not_top_the_leaderboard() -> None:
    """No attack changes one and the same answer: 38.5 % under every attack is more than most robust networks keep."""
    fixed = {"accuracy": 0.385, "accuracy_ci": [0.34, 0.43], "confusion": [[219, 0], [351, 0]], "n": 570}
    honest = {"accuracy": 0.8, "accuracy_ci": [0.76, 0.83], "confusion": [[219, 0], [351, 0]], "n": 570}
    rows = [_attack("fgsm", 0.02, 0.385), _attack("pgd", 0.02, 0.385)]
    runs = [
        _run(clean=fixed, attacks=rows, defence="fgsm"),
        _run(clean=honest, attacks=[_attack("fgsm", 0.02, 0.3), _attack("pgd", 0.02, 0.2)], defence="pgd"),
    ]
    head = ranking.headline(EMPTY, runs)
    assert [run.defence for run in ranking.ordered(runs, head)] == ["pgd", "fgsm"]
    assert summary.best_by(runs, summary.under(head, "pgd")) is runs[1]
    verdicts = [row[2].text for row in robustness.masking(runs).rows]  # type: ignore[union-attr]
    assert verdicts == ["says nothing", "no sign"]


def test_summary_counts_what_the_judge_saw() -> None:
    clean = {"accuracy": 0.8}
    one = [_attack("fgsm", 0.02, 0.6), _attack("pgd", 0.02, 0.1)]
    two = [_attack("fgsm", 0.02, 0.6), _attack("pgd", 0.02, 0.55), _attack("fgsm", 0.3, 0.3), _attack("pgd", 0.3, 0.0)]
    three = [_attack("pgd", 0.02, 0.6), _attack("pgd", 0.3, 0.3)]
    runs = [_run(clean=clean, attacks=entries) for entries in (one, two, three, [])]
    findings = alarms.find(study_folder.StudyFolder(Path(), EMPTY, [], []), runs)
    assert findings.runs_with("fgsm_overstates") == 2
    assert findings.count == 3
    told = _told(EMPTY, runs)
    assert "In 1 of 4 runs gradients fail" in told
    assert "In 1 of 4 runs it could not be looked for" in told
    assert "In 2 of 4 runs FGSM overstates" in told


def test_the_best_figure_under_an_attack_is_doubted_where_an_alarm_says_so() -> None:
    honest = _run(
        model="honest", clean={"accuracy": 0.8}, attacks=[_attack("fgsm", 0.02, 0.6), _attack("pgd", 0.02, 0.5)]
    )
    flattered = _run(
        model="b", clean={"accuracy": 0.8}, attacks=[_attack("fgsm", 0.02, 0.7), _attack("pgd", 0.02, 0.0)]
    )
    doubt = "That figure is not to be relied on: of it FGSM overstates."

    def told(*runs: study_folder.Run) -> list[str]:
        points = summary.points(EMPTY, list(runs), ranking.headline(EMPTY, list(runs)))
        return [point.lead for point in points if doubt in point.text]

    assert told(honest, flattered) == ["Under FGSM, epsilon 0.02"]
    assert told(honest) == []


def test_summary_tells_runs_of_one_defence_apart_by_their_background() -> None:
    attacks = [_attack("fgsm", 0.02, 0.6)]
    runs = [_run(clean={"accuracy": 0.8}, attacks=attacks, defence="fgsm", background=b) for b in ("gate", "full")]
    runs += [_run(clean={"accuracy": 0.9}, attacks=[_attack("fgsm", 0.02, 0.1)], defence="standard")]
    assert ranking.ways(runs) == ["standard", "fgsm", "fgsm (background gate)"]
    told = " ".join(point.text for point in summary.points(EMPTY, runs, ranking.headline(EMPTY, runs)))
    assert "3 ways of training (standard, fgsm and fgsm (background gate))" in told
    assert "training with fgsm accuracy went" in told.replace("With ", "with ")
    assert "training with fgsm (background gate) accuracy went" in told
    row = {"model": "m", "defence": "fgsm", "background": "gate", "standard": 0.1, "robust": 0.3, "difference": 0.2}
    assert "0.300 with fgsm (background gate) (difference" in summary._one_comparison(_read(Comparison, row))


def test_an_interval_below_0_of_which_nothing_is_claimed_has_its_reason_beside_it() -> None:
    row = {"model": "m", "standard": 0.1, "robust": 0.09, "difference": -0.007}
    row |= {"difference_ci": [-0.011, -0.002], "p_value": 0.004, "p_corrected": 0.088, "comparisons": 22, "n": 64}
    told = summary._one_comparison(_read(Comparison, row)).replace("\u00a0", " ")
    assert told.endswith("no difference is shown among 22 comparisons (p corrected for their number = 0.09).")
    told = summary._one_comparison(_read(Comparison, row | {"p_corrected": 0.03}))
    assert told.endswith(": it fell.")
    told = summary._one_comparison(_read(Comparison, row | {"p_value": 0.06, "p_corrected": 0.06, "comparisons": 1}))
    assert told.endswith(": no difference is shown."), "nothing is corrected where there is one"
    row["difference_ci"] = [-0.015, 0.001]
    assert summary._one_comparison(_read(Comparison, row)).endswith(": no difference is shown.")


def test_what_an_epoch_was_chosen_by_stands_with_its_epsilon() -> None:
    ways = (
        ({"monitor": "val_pgd_accuracy", "epsilon": 0.02}, "validation PGD accuracy at 0.02"),
        ({"monitor": "val_accuracy"}, "validation accuracy"),
    )
    for training, said in ways:
        table = provenance.training([_run(training=training | {"best_value": 0.5})])
        assert [cell.text for cell in table.rows[0]][table.header.index("Chosen by")] == said


def test_overfitting_is_what_training_noticed(tmp_path: Path) -> None:
    """One definition, the monitor's: the report shows its alarm, and makes none of the history."""
    rows = "epoch,val_fgsm_accuracy,val_pgd_accuracy\n0,0.4,0.38\n1,0.5,0.45\n2,0.8,0.02\n"
    (tmp_path / "history.csv").write_text(rows)
    text = "catastrophic overfitting at epoch 2: ..."
    for training, lines in (({"alarm": text}, [f"m · fgsm: {text}"]), ({}, [])):
        run = _run(clean={"accuracy": 0.8}, training=training)
        run.folder = tmp_path
        found = alarms.find(study_folder.StudyFolder(Path(), EMPTY, [], []), [run])
        assert [line for g in found.groups if g.kind == "catastrophic_overfitting" for line in g.lines] == lines


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([[0.01, 0.03], [0.02, 0.05]], "agree better with the infection masks in all 2"),
        ([[-0.01, 0.03], [-0.04, 0.05]], "was not seen in any of 2"),
        ([[-0.03, -0.01], [-0.04, 0.05]], "in 1 they agree worse"),
        ([[0.01, 0.03], [-0.04, -0.02]], "in 1 of 2"),
        ([None, None], "was not seen in any of 2"),
    ],
)
def test_summary_can_say_yes_no_and_partly(intervals: list[Any], expected: str) -> None:
    figures = [{"difference": 0.1, "difference_ci": ci, "n": 120} for ci in intervals]
    rows = [_read(Comparison, {"measure": "infection_energy", **found}) for found in figures]
    assert expected in summary.answer(rows)
    assert "120 infected X-rays" in summary.answer(rows)


def test_the_summary_names_its_method_and_what_the_others_say() -> None:
    def row(method: str, low: float) -> dict[str, Any]:
        values = {"difference": 0.1, "difference_ci": [low, 0.3], "n": 120}
        return {"measure": "infection_energy", "model": "m", "defence": "fgsm", "method": method, **values}

    run = _run(clean={"accuracy": 0.5, "n": 9})
    rows = [row("layercam@gate", 0.1), row("gradcam", -0.1), row("hirescam", 0.1)]
    study = _read(StudyDocument, {"comparisons": rows})
    told = _told(study, [run])
    assert "in the one comparison made (LayerCAM, gate, 120 infected X-rays)" in told
    assert "Better by the other methods: Grad-CAM in 0 of 1; HiResCAM in 1 of 1." in told
    assert "without the network" not in told
    maps = {"infection_energy": 0.331, "infection_energy_ci": [0.294, 0.365], "pointing_hit_rate": 0.458}
    brightness = {"infection_energy": 0.342, "pointing_hit_rate": 0.758}
    parts = {"layercam-smooth@gate": maps, "gradcam": maps, "activation-smooth@gate": brightness}
    run.metrics.saliency = {name: _read(SaliencyDocument, part) for name, part in parts.items()}
    told = _told(study, [run])
    assert (
        "without the network: m · fgsm: energy 0.331 (95\u00a0% CI 0.294 to 0.365), control 0.342; "
        "hit rate 0.458, control 0.758." in told
    )
    study.comparisons = study.comparisons[1:2]
    told = _told(study, [run])
    assert "not seen in the one comparison made (Grad-CAM, 120 infected X-rays)" in told
    assert "other methods" not in told


def test_a_tie_is_told() -> None:
    runs = [_run(model=name, clean={"accuracy": 0.5}) for name in "abc"]
    assert "and 2 others with the same figure" in _told(EMPTY, runs)


def test_measures_without_a_value_are_counted(tmp_path: Path) -> None:
    import pandas as pd

    run = _run(saliency={"gradcam": {"infection_energy": 0.1, "n": 3}})
    run.folder = tmp_path
    rows = {"method": "gradcam", "condition": "clean", "measure": "infection_energy", "value": [0.1, None, 0.1]}
    pd.DataFrame(rows).to_parquet(tmp_path / "saliency.parquet")
    assert "n\u00a0=\u00a02" in leaderboard.explanations([run]).rows[0][3].beside


def test_order_rests_on_the_strongest_attack() -> None:
    def run(name: str, clean: float, fgsm: float, pgd: float) -> study_folder.Run:
        attacks = [_attack("fgsm", 0.02, fgsm), _attack("pgd", 0.02, pgd)]
        return _run(model=name, clean={"accuracy": clean}, attacks=attacks)

    runs = [run("masked", 0.7, 0.9, 0.001), run("standard", 0.9, 0.3, 0.0), run("robust", 0.6, 0.5, 0.4)]
    head = ranking.headline(EMPTY, runs)
    assert [r.model for r in ranking.ordered(runs, head)] == ["robust", "standard", "masked"]


def _both_pgds() -> study_folder.Run:
    attacks = [_attack("fgsm", 0.02, 0.6), _attack("pgd", 0.02, 0.55) | {"steps": 10}]
    attacks += [_attack("pgd", 0.02, 0.2) | {"steps": 40}, _attack("pgd-l2", 0.02, 0.1) | {"steps": 20}]
    return _run(clean={"accuracy": 0.8}, attacks=attacks)


def test_of_two_pgds_the_stronger_counts_and_both_stand_on_the_page() -> None:
    run = _both_pgds()
    head = ranking.headline(EMPTY, [run])
    assert (head.strongest, head.names["pgd"]) == ("pgd", "PGD-10/40")
    assert run.attacked("pgd", 0.02).steps == 40
    assert run.attacked("pgd", 0.02, 10).accuracy.value == 0.55
    board = leaderboard.leaderboard([run], head)
    assert board.rows[0][board.header.index("PGD-10/40 at 0.02, %")].text == "20.0"
    swept = {row[2].text: row[3].text for row in leaderboard.sweeps([run]).rows}
    assert swept == {"FGSM": "60.0", "PGD-10": "55.0", "PGD-40": "20.0", "PGD (L2)-20": "10.0"}
    assert "20.0\u00a0%" in answers.sentences(EMPTY, [run], head)[1]
    assert "20.0" in terminal_text(StudyDocument(runs=[run.metrics]))
    fewer = _run(clean={"accuracy": 0.8}, attacks=[run.attacks[0].plain()])
    drawn, less = (svg.inline(epsilon_curves("m", [each]), "k") for each in (run, fewer))
    assert drawn.count("<path") > less.count("<path")
    shown = legends.shown(legends.curves([run]))
    assert ["PGD-10" in entry or "PGD-40" in entry for entry in shown].count(True) == 2


def terminal_text(document: StudyDocument) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(leaderboard_in_terminal(document))
    return console.export_text()


def test_headlines_take_the_lowest_whatever_the_attack_is_called() -> None:
    """APGD-CE without PGD beside a stronger worst-case, and an attack that nobody listed in an order."""
    weak = _run(clean={"accuracy": 0.8}, attacks=[_attack("pgd", 0.02, 0.5), _attack("apgd-ce", 0.02, 0.1)])
    held = _run(clean={"accuracy": 0.8}, attacks=[_attack("pgd", 0.02, 0.4), _attack("apgd-ce", 0.02, 0.3)])
    head = ranking.headline(EMPTY, [weak, held])
    assert head.strongest == "apgd-ce"
    assert ranking.ordered([weak, held], head) == [held, weak]


def test_headline_epsilon_is_the_recipes() -> None:
    runs = [_run(attacks=[_attack("pgd", e, 0.5) for e in (0.005, 0.01, 0.02)])]
    for asked, chosen in ((0.01, 0.01), (0.3, 0.02)):
        study = StudyDocument(recipe={"defences": [{"name": "fgsm", "epsilon": asked}]})
        assert ranking.headline(study, runs).epsilon == chosen
    assert ranking.headline(EMPTY, runs).epsilon == 0.02
    assert ranking.headline(EMPTY, []).epsilon is None


def test_headline_epsilon_is_of_a_defence_that_has_one() -> None:
    """A recipe is written out with every key, so that mixup has an epsilon too, which nothing reads."""
    asked = {"name": "x", "models": ["resnet18"], "defences": [{"name": "mixup"}, {"name": "fgsm", "epsilon": 0.01}]}
    recipe = validate(StudyRecipe, asked, "x").model_dump(mode="json")
    runs = [_run(attacks=[_attack("pgd", e, 0.5) for e in (0.01, 0.02)])]
    assert ranking.headline(StudyDocument(recipe=recipe), runs).epsilon == 0.01


def test_intervals_overlap_only_where_they_meet_and_who_lies_above_is_named() -> None:
    """A constant answer keeps 33.3 % under every attack; the best that may be named keeps 20 %, at most 23."""

    def attacked(accuracy: float, ends: list[float] | None) -> list[dict[str, Any]]:
        return [_attack("pgd", 0.02, accuracy) | {"accuracy_ci": ends, "steps": 20, "n": 570}]

    def told(ends: list[float] | None, **fixed: Any) -> str:
        one = _run(model="a", clean={"accuracy": 0.7, "accuracy_ci": [0.66, 0.74]}, attacks=attacked(0.2, [0.17, 0.23]))
        other = _run(model="b", defence="pgd", clean={"accuracy": 0.333}, attacks=attacked(0.333, ends), **fixed)
        head = ranking.headline(EMPTY, [one, other])
        return next(p.text for p in summary.points(EMPTY, [one, other], head) if p.lead.startswith("Under PGD"))

    constant = {"alarms": [{"kind": "no_better_than_constant", "text": "t"}]}
    said = told([0.29, 0.38], **constant)
    assert "no other run’s interval overlaps with its own" in said
    assert "Above it lies b · pgd, not shown to be better than a constant answer." in said
    assert "that of one other run overlap" in told([0.19, 0.38], **constant)
    assert "Above" not in told([0.19, 0.38], **constant)
    assert "1 other run has no interval" in told(None, **constant)


def test_svg_keeps_text_and_ids_apart() -> None:
    runs = [_run(attacks=[_attack("pgd", 0.02, 0.5)], clean={"accuracy": 0.6})]
    one, two = (svg.inline(epsilon_curves("$m_1$ <b>", runs), key) for key in ("k1", "k2"))
    assert "$m_1$ &lt;b&gt;" in one
    assert "xmlns" not in one
    assert not set(re.findall(r' id="([^"]+)"', one)) & set(re.findall(r' id="([^"]+)"', two))


def test_numbers_as_words() -> None:
    assert words.percent(0.8229) == "82.3\u00a0%"
    assert words.percent(None) == words.percent(float("nan")) == words.percent("x") == words.DASH
    assert words.signed(-0.0004) == "0.000"
    assert words.signed(0.012) == "+0.012"
    assert words.signed(-0.012) == "−0.012"
    assert words.p_value(0.0001) == "<\u00a00.001"
    assert words.between([0.1, None]) == ""
    assert words.between([-0.002, -0.0002]) == "−0.002 to 0.000"
    assert words.between([-0.002, -0.0002], reveal=True) == "−0.0020 to −0.0002"
    assert words.between([-0.002, 0.0], reveal=True) == "−0.002 to 0.000"
    assert words.attack("pgd", 20) == "PGD-20"
    assert words.attack("fgsm", 1) == "FGSM"
    assert words.measure("pgd accuracy @0.02") == "PGD accuracy at 0.02"
    assert words.measure("infection_energy") == "infection energy"
    assert words.measure("val_pgd_accuracy") == "validation PGD accuracy"
    assert words.measure("lungs blacked out accuracy") == "accuracy, lungs blacked out"


def test_the_centre_prior_stands_beside_chance_where_it_was_measured() -> None:
    part = {"infection_energy": 0.2, "infection_energy_ci": [0.1, 0.3], "infection_energy_chance": 0.12, "n": 9}
    with_centre = str(
        leaderboard.explanations([_run(saliency={"gradcam": part | {"infection_energy_centre": 0.345}})]).rows
    )
    assert "centre 0.345" in with_centre
    assert "centre" not in str(leaderboard.explanations([_run(saliency={"gradcam": part})]).rows)


def test_the_answer_leaves_out_what_is_alarmed_and_one_run_is_no_best() -> None:
    """A run whose gradients fail has the highest figure under attack, and is not the one that the answer names."""
    clean = {"accuracy": 0.8, "accuracy_ci": [0.7, 0.9], "n": 90, "confusion": [[45, 0], [0, 45]]}
    honest = _run(model="honest", clean=clean, attacks=[_attack("fgsm", 0.02, 0.5), _attack("pgd", 0.02, 0.4)])
    masked = _run(model="masked", clean=clean, attacks=[_attack("pgd", 0.01, 0.6), _attack("pgd", 0.02, 0.7)])
    assert (honest.masked, masked.masked) == (False, True)
    head = ranking.headline(EMPTY, [masked, honest])
    said = answers.sentences(EMPTY, [masked, honest], head)
    assert len(said) == 3
    assert "honest · fgsm keeps most, 40.0\u00a0%" in said[1]
    assert "1 run whose gradients fail is left out" in said[1]
    assert [run.model for run in ranking.ordered([masked, honest], head)] == ["honest", "masked"]
    rows = models.models([honest, masked], head).rows
    assert [(row[2].text, row[4].note) for row in rows] == [("No alarm", ""), ("Gradients fail", "bad")]
    alone = _told(EMPTY, [honest])
    assert "best" not in alone
    assert "most" not in alone.replace("at most", "")
    assert (
        "Of X-rays as they are it answers 80.0\u00a0% (95\u00a0% CI 70.0 to 90.0, n\u00a0=\u00a090) rightly." in alone
    )
    only = answers.sentences(EMPTY, [masked], ranking.headline(EMPTY, [masked]))
    assert "nothing may be relied on" in only[1]


def test_of_what_was_not_attacked_no_failing_gradients_are_told() -> None:
    clean = {"accuracy": 0.8, "accuracy_ci": [0.7, 0.9], "n": 90, "confusion": [[45, 0], [0, 45]]}
    masked = _run(model="masked", clean=clean, attacks=[_attack("pgd", 0.01, 0.6), _attack("pgd", 0.02, 0.7)])
    spared = _run(model="spared", clean=clean)
    other_ball = _run(model="other", clean=clean, attacks=[_attack("pgd-l2", 0.02, 0.4)])
    for runs in ([masked, spared], [other_ball]):
        said = answers.sentences(EMPTY, runs, ranking.headline(EMPTY, runs))[1]
        assert "At epsilon 0.02 no L-infinity attack" in said
        assert "nothing is known" in said
        assert "fail" not in said


def test_methods_name_what_was_done_and_nothing_else() -> None:
    recipe = {
        "models": ["a", "b"],
        "training": {"epochs": 3, "refit": True, "background": "gate", "balanced": False},
        "defences": [{"name": "gaussian", "epsilon": 0.02, "sigma": 0.05}, {"name": "fgsm", "epsilon": 0.01}],
    }
    chosen = {"split": "Val", "by": "accuracy", "count": 1, "ranking": [{"model": "a", "value": 0.8, "chosen": True}]}
    study = _read(StudyDocument, {"recipe": recipe, "selection": chosen})
    run = _run(saliency={"gradcam": {"infection_energy": 0.2}})

    def told() -> dict[str, str]:
        return {part.lead: part.text for part in methods.paragraphs(study, [run])}

    assert "together, background of training images gate" in told()["Networks and training"]
    assert "equally often" not in told()["Networks and training"]
    assert told()["Training to resist"] == (
        "Each of the chosen networks was trained as usual and, beside it, by Gaussian noise (Ford et al. 2019), sigma "
        "0.05; FGSM (Goodfellow et al. 2015), epsilon 0.01 (L-infinity)."
    )
    assert "random weights" not in told()["Heatmaps"]
    run.metrics.saliency["gradcam"].random_weights = RandomWeights(n=9)
    assert "random weights" in told()["Heatmaps"]


def _methods_of(recipe: StudyRecipe) -> dict[str, str]:
    study = StudyDocument(recipe=recipe.model_dump(mode="json"))
    return {part.lead: part.text for part in methods.paragraphs(study, [])}


def test_methods_tell_what_each_way_of_training_says_of_its_own() -> None:
    resisting = _methods_of(load_study("quick"))["Training to resist"]
    assert "FGSM (Goodfellow et al. 2015), epsilon 0.02 (L-infinity), ramp 0.7, at most 8 epochs." in resisting
    resisting = _methods_of(load_study("robustness"))["Training to resist"]
    assert (
        "TRADES (Zhang et al. 2019), epsilon 0.02 (L-infinity), steps 1, beta 3.0, ramp 0.7, at most 10 " in resisting
    )
    assert "replays 4, ramp 0.7, at most 7 epochs; mixup (Zhang et al. 2018), alpha 0.2; cutout" in resisting
    resisting = _methods_of(load_study("evidence"))["Training to resist"]
    assert "ramp 0.7, background of training images gate (the model contains a lung segmenter" in resisting
    assert resisting.count("held to the lesion masks") == 3
    assert "standard training, called caused, " in resisting
    assert "filled with grey, mirror and surroundings in turn" in resisting
    assert "both shown without an attack." in resisting.rsplit("; FGSM", 1)[1]


def test_methods_name_every_key_that_changes_a_network_or_a_training() -> None:
    own = {"epochs": 8, "balanced": False, "weight_decay": 2.0, "augment": {"rotation": 3.0}}
    asked = {
        "name": "x",
        "models": [
            {"name": "resnet18", "label": "other", "normalisation": "group"},
            {"name": "resnet10t", "training": {"epochs": 12}},
        ],
        "training": {"balanced": True, "epochs": 8, "augment": {"rotation": 3.0, "flip": 0.5}},
        "defences": [
            {"name": "fgsm", "attack_precision": "bf16", "training": own},
            {"name": "ibp", "attack_share": 0.1, "regulariser": 0.5, "ramp": 0.6},
            {"name": "standard", "training": {"background": "swap"}},
        ],
    }
    told = _methods_of(validate(StudyRecipe, asked, "x"))
    networks, resisting = told["Networks and training"], told["Training to resist"]
    assert "called other, imagenet weights, group normalisation" in networks
    assert "Otherwise: resnet10t at most 12 epochs." in networks
    fgsm, ibp, swap = resisting.split("; ")
    assert "attack computed in bf16" in fgsm
    assert "at most 8 epochs" in fgsm, "the study's own, but not that of resnet10t"
    assert "weight decay 2.0" in fgsm
    assert "without balanced" in fgsm
    assert "without flip" in fgsm
    assert "rotation" not in fgsm
    assert "share of the loss on FGSM's images 0.1, regulariser 0.5" in ibp
    assert "swap (the lungs on another film's background)" in swap


def test_methods_say_where_a_machine_could_not_compute_in_what_was_asked_for() -> None:
    study = _read(StudyDocument, {"recipe": {"models": ["a"], "training": {"precision": "bf16-mixed"}}})
    run = _run(training={"precision": "32-true", "precision_asked": "bf16-mixed"})
    as_asked = _run(training={"precision": "bf16-mixed", "precision_asked": "bf16-mixed"})

    def told(*runs: study_folder.Run) -> str:
        return next(part.text for part in methods.paragraphs(study, list(runs)) if part.lead.startswith("Networks"))

    assert f"{run.name} in 32-true, where bf16-mixed was asked for" in told(run, as_asked)
    assert "otherwise" not in told(as_asked)


def test_a_figure_without_an_interval_has_no_empty_brackets() -> None:
    drawing = forest("clean accuracy", [_read(Comparison, {"model": "m", "defence": "fgsm", "difference": 0.1})])
    assert drawing is not None
    drawn = svg.inline(drawing, "k")
    assert "m · fgsm: +10" in drawn
    assert "CI" not in drawn


@pytest.mark.parametrize("ends", [[0.1, 0.3], [-0.3, -0.1]])
@pytest.mark.parametrize("better", ["higher", "lower", None])
def test_both_forest_plots_have_the_colour_of_the_table(better: str | None, ends: list[float]) -> None:
    said = {"model": "m", "defence": "fgsm", "better": better, "difference": sum(ends) / 2, "difference_ci": ends}
    row = _read(Comparison, said | {"measure": "infection_energy", "method": "gradcam"})
    note = comparisons(StudyDocument(comparisons=[row])).rows[0][-1].note
    colour = {"good": svg.BETTER, "bad": svg.WORSE, "quiet": svg.QUIET}[note]
    assert (note == "quiet") == (better is None)
    for drawing in (forest("lungs_blacked_out accuracy", [row]), saliency.forest("gradcam", [row])):
        assert drawing is not None
        drawn = Figure()
        drawing.plot(drawn)
        assert {to_hex(line.get_color()) for line in drawn.axes[0].lines if line.get_marker() == "o"} == {colour}


def test_cells_are_drawn_only_for_the_method_that_has_them() -> None:
    run = _run(saliency={"gradcam": {"cells": "2 x 3"}, "layercam": {}})
    film = {"image": np.zeros((1, 8, 8), np.uint8), "saliency": np.ones((1, 8, 8))}

    def shown(**method: str) -> str:
        run.panels = film | {key: np.array([value]) for key, value in method.items()}
        return str([panel.lines for example in pictures.gallery([run]).examples for panel in example.panels])

    assert "2 × 3 cells" in shown(method="gradcam")
    assert "2 × 3 cells" in shown(), "version 0.1 kept those of its first method, and did not say"
    assert "cells" not in shown(method="layercam")
    assert "cells" not in shown(method="scorecam"), "of which nothing is known"
