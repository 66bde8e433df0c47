"""What the page of lesions computes over seeds, and what it says of its goals."""

import numpy as np
import pandas as pd
import pytest
from benchmarks.findings import lesions

GOOD = {"worst_case": 0.65, "clean": 0.85, "lungs_blacked_out": 0.3, "hit_rate": 0.95}
GOOD |= {"hit_rate_less_control": 0.12, "hit_rate_less_control_low": 0.05, "lesion_effect": 0.3}
GOOD |= {"infection_given_lung_less_control": 0.1, "infection_given_lung_less_control_low": 0.02}
GOOD |= {"lesion_effect_low": 0.2, "lesion_effect_drawn": 0.25, "lesion_effect_drawn_low": 0.1}


def means(**changes: float) -> pd.DataFrame:
    spreads = {f"{name}_spread": 0.01 for name in lesions.OVER_SEEDS}
    return pd.DataFrame([{"run": "net-fgsm, mean", "recipe": "net-fgsm", "seeds": 3} | spreads | GOOD | changes])


def test_all_goals_are_met_or_what_is_missed_is_said() -> None:
    assert lesions.nearest(means()) == "All goals are met by net-fgsm."
    assert lesions.means_rows(means())[0][-1] == "6 of 6"
    said = lesions.nearest(means(worst_case=0.52, lesion_effect=0.15))
    assert "worst case by 8.0 points" in said
    assert "lesion effect by 0.050" in said
    assert lesions.means_rows(means(worst_case=0.52, lesion_effect=0.15))[0][-1] == "4 of 6"


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("lungs_blacked_out", 0.41),
        ("hit_rate_less_control_low", 0.0),
        ("lesion_effect_low", -0.01),
        ("lesion_effect_drawn", 0.19),
        ("lesion_effect_drawn_low", -0.01),
    ],
)
def test_a_goal_that_only_seems_met_is_missed(measure: str, value: float) -> None:
    assert sum(lesions.goals_met(means(**{measure: value}).iloc[0]).values()) == 5


def test_the_nearest_is_the_one_that_meets_most_and_of_these_the_most_robust() -> None:
    table = pd.concat([means(worst_case=0.1, clean=0.9), means(worst_case=0.4), means(worst_case=0.59, clean=0.7)])
    table["recipe"] = ["fragile", "middle", "robust"]
    assert "The nearest, middle," in lesions.nearest(table)


def test_an_effect_by_the_taught_fill_alone_and_a_withheld_hit_rate_are_said() -> None:
    said = lesions.nearest(means(lesion_effect_drawn=0.12))
    assert "misses by drawn greys lesion effect by 0.080" in said
    gone = means(hit_rate=np.nan, hit_rate_less_control=np.nan, hit_rate_less_control_low=np.nan)
    assert "hit rate, less control, which is withheld" in lesions.nearest(gone)
    assert lesions.means_rows(gone)[0].count("withheld") == 2
    assert lesions.means_rows(gone)[0][-1] == "5 of 6"


def test_what_even_a_segmenter_misses_of_the_goals_for_maps_is_said_and_stands_on_the_page() -> None:
    assert lesions.of_a_segmenter({"hit_rate": 0.11, "infection_given_lung": 0.05}) == ""
    said = lesions.of_a_segmenter({"hit_rate": 0.11, "infection_given_lung": 0.031})
    assert said.startswith("It misses the goals for maps as well, infection given lung, less control by 0.019; ")
    row = pd.read_csv(lesions.RESULTS / "lesions-covidqu-midi.csv").set_index("run").loc["segmenter"]
    said = lesions.of_a_segmenter({name: row[f"{name}_less_control"] for name in lesions.MAPPED})
    assert f"nothing. {said}People" in (lesions.RESULTS / "lesions-covidqu-midi.md").read_text(encoding="utf-8")


def test_seeds_of_one_recipe_have_their_mean_and_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["net-fgsm-s0", "net-fgsm-s1", "net-standard-s0"]
    rows = {name: {"run": name} | GOOD | {"clean": clean} for name, clean in zip(names, (0.7, 0.8, 0.9), strict=True)}
    for name, control in zip(names, ("brightness", "edges", "edges"), strict=True):
        rows[name] |= {"hit_rate_control": control}
    monkeypatch.setattr(lesions, "row", lambda found: rows[found["run"]])
    table = lesions.with_means([{"run": name} for name in names])
    assert len(table) == 5
    mean = table[table["run"] == "net-fgsm, mean"].iloc[0]
    assert mean["hit_rate_control"] == "brightness; edges"
    assert (mean["clean"], mean["clean_spread"], mean["seeds"]) == (pytest.approx(0.75), pytest.approx(0.1), 2)


def test_the_films_of_mini_have_a_table_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    of_all = GOOD | {"films": 245, "images": 711}
    of_mini = of_all | {"clean": 0.5, "lesion_effect_low": -0.1, "films": 80, "images": 570}
    rows = {True: {"run": "net-fgsm-s0"} | of_mini, False: {"run": "net-fgsm-s0"} | of_all}
    monkeypatch.setattr(lesions, "row", lambda found: rows[found["mini"]])
    assert lesions.of_mini_alone(lesions.with_means([{"mini": False}])) == []
    table = lesions.with_means([{"mini": False}], [{"mini": True}])
    assert (table["clean"] == GOOD["clean"]).all(), "the figures of all films stay"
    text = "\n".join(lesions.of_mini_alone(table))
    assert "The 570 films of covidqu-mini" in text
    assert "the 80 with a congruent part" in text
    assert "50.0 (0.0)" in text
    met, met_alone = (lesions.means_rows(one)[0][-1] for one in (table, lesions.mini_alone(table)))
    assert (met, met_alone) == ("6 of 6", "4 of 6"), "clean falls short, and the effect is not surely above 0"


def test_films_of_mini_are_known_by_the_manifest() -> None:
    table = pd.DataFrame({"in_mini": ["1", "0", "1"]})
    assert lesions.of_mini(table).tolist() == [True, False, True]
    assert lesions.of_mini(table.drop(columns="in_mini")).tolist() == [False] * 3


def test_fills_that_training_used_are_told() -> None:
    runs = [
        {"run": "a", "fills": ["grey", "mirror"]},
        {"run": "b", "fills": []},
        {"run": "c", "fills": ["grey", "mirror"]},
    ]
    assert lesions.by_fills(runs) == {("grey", "mirror"): ["a", "c"]}


def _margin(measure: str, control: str, difference: float) -> dict[str, object]:
    ends = {"low": difference - 0.05, "high": difference + 0.05}
    return {"measure": measure, "control": control, "difference": difference, "value": 0.8, **ends}


def test_every_control_stands_beside_a_map_but_a_hit_rate_that_is_withheld() -> None:
    over = [_margin("hit_rate", "lung", 0.1), _margin("infection_given_lung", "lung", 0.02)]
    over += [_margin("infection_given_lung", "lung, as sharp", -0.01)]
    found = {"run": "net-s0", "guided": "", "maps": {"evidence": {"margins": over, "withheld": ""}}}
    assert lesions.controls_rows(found) == [
        ["net-s0", "evidence", "lung", "+0.100 [+0.050, +0.150]", "+0.020 [-0.030, +0.070]"],
        ["net-s0", "evidence", "lung, as sharp", "", "-0.010 [-0.060, +0.040]"],
    ]
    found["maps"]["evidence"]["withheld"] = "too few cells"  # type: ignore[index]
    assert [cells[3] for cells in lesions.controls_rows(found)] == ["withheld", "withheld"]


def test_sizes_have_their_intervals_and_films_under_pgd_every_fill() -> None:
    size = {"up_to": 0.25, "effect": 0.1, "low": 0.05, "high": 0.15, "films": 7}
    one = {"control": "lung", "effect": 0.2, "effect_ci": [0.1, 0.3], "by_size": [size]}
    causes = [one | {"fill": fill, "condition": how} for fill in lesions.FILLS for how in ("clean", "pgd")]
    found = {"run": "net-s0", "causes": causes}
    assert lesions.sizes_row(found) == ["net-s0", "+0.100 [+0.050, +0.150] (7)"]
    assert lesions.attacked_row(found) == ["net-s0", *["+0.200 [+0.100, +0.300]"] * len(lesions.FILLS)]
