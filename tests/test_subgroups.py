"""For whom is a model bad? Groups by any column, small ones merged, the gap tested."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trustcxr.evaluation import subgroups
from trustcxr.statistics import inside_against_outside


def table(count: int = 200) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "sample_id": [str(i) for i in range(count)],
            "sex": random.choice(["F", "M"], count),
            "Patient Age": [f"{random.integers(1, 95):03d}Y" for _ in range(count)],
            "dose": random.random(count).round(4).astype(str),
            "hospital": random.choice(["A", "B", "C", "D"], count, p=[0.6, 0.3, 0.06, 0.04]),
            "file": [f"{i}.png" for i in range(count)],
            "scanner": "one",
            "note": ["odd" if i < 3 else None for i in range(count)],
            "lung_mask": "x",
        }
    )


def test_columns_that_divide_the_films_are_found_and_numbers_become_bands() -> None:
    found = subgroups.columns_of(table())
    assert set(found) == {"by_sex", "by_Patient Age", "by_dose", "by_hospital"}
    ages = pd.to_numeric(table()["Patient Age"].str.rstrip("Y"))
    for band, part in ages.groupby(found["by_Patient Age"]):
        low, high = (int(end) for end in str(band).split(" to "))
        assert part.between(low, high).all()
    assert set(found["by_Patient Age"]) <= {"0 to 19", "20 to 39", "40 to 59", "60 to 79", "80 to 200"}
    assert found["by_dose"].nunique() == 4
    assert found["by_dose"].value_counts().max() <= 51


def test_bands_have_no_more_digits_than_tell_them_apart() -> None:
    random = np.random.default_rng(0)
    share = pd.Series([str(value) for value in random.uniform(0.1, 0.9, 200)])
    alike = pd.Series([str(value) for value in random.uniform(0.50001, 0.50009, 200)])
    found = subgroups.columns_of(table(200).assign(share=share, alike=alike))
    assert all(len(end) <= 5 for band in set(found["by_share"]) for end in band.split(" to "))
    assert found["by_alike"].nunique() == 4


def test_whole_numbers_that_are_names_divide_nothing() -> None:
    films = table().assign(seed=[str(20_000_001 + i) for i in range(len(table()))])
    assert "by_seed" not in subgroups.columns_of(films)


def clean(count: int = 200) -> pd.DataFrame:
    """Predictions of a model that is bad for men alone."""
    about = table(count)
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, count)
    right = random.random(count) < np.where(about["sex"] == "M", 0.6, 0.97)
    said = np.where(right, labels, 1 - labels)
    logits = [np.array([1.0 - k, float(k)]) for k in said]
    frame = pd.DataFrame({"sample_id": about["sample_id"], "group": about["sample_id"], "label": labels})
    return pd.concat([frame.assign(logits=logits), subgroups.columns_of(about)], axis=1)


def test_the_worst_group_and_its_gap() -> None:
    rows = clean()
    found = {part["column"]: part for part in subgroups.describe(rows, ("a", "b"), resamples=200)}
    sex = found["sex"]
    assert sex["worst"] == "M"
    men = next(group for group in sex["groups"] if group["name"] == "M")
    inside = (rows["by_sex"] == "M").to_numpy()
    right = np.stack(rows["logits"]).argmax(1) == rows["label"]
    assert men["accuracy"] == pytest.approx(right[inside].mean())
    assert men["gap"] == pytest.approx(right[inside].mean() - right[~inside].mean())
    assert men["settled"]
    counts = [[(right & part).sum(), (~right & part).sum()] for part in (inside, ~inside)]
    assert men["p_value"] == pytest.approx(stats.fisher_exact(counts)[1])
    tested = [group["p_value"] for part in found.values() for group in part["groups"]]
    assert men["p_corrected"] <= len(tested) * men["p_value"] + 1e-12
    assert men["p_corrected"] > men["p_value"]
    for name in ("auroc_macro", "ece", "accuracy"):
        assert men[f"{name}_ci"][0] <= men[name] <= men[f"{name}_ci"][1]
    assert "worst is M" in sex["text"]
    assert "settled" in sex["text"]
    assert not any(group["settled"] for group in found["dose"]["groups"])


def divided(groups: list[str], right: list[bool], films: list[str] | None = None) -> dict[str, object]:
    """What is said of one column, by its groups and whether each answer is right."""
    logits = [np.array([1.0, 0.0]) if hit else np.array([0.0, 1.0]) for hit in right]
    names = [str(i) for i in range(len(groups))]
    rows = pd.DataFrame({"sample_id": names, "group": films or names, "label": 0, "logits": logits, "by_view": groups})
    rows = rows if films is None else rows.assign(film=films)
    return dict(subgroups.describe(rows, ("a", "b"), resamples=50)[0].plain())


def test_a_group_is_the_worst_only_of_two_and_where_it_is_below_the_rest() -> None:
    alone = divided(["AP"] * 40 + ["PA"] * 10, [True] * 38 + [False] * 2 + [False] * 10)
    assert (alone["worst"], alone["text"]) == ("", "by view: no two groups have 20 films")
    few_bad = ["AP"] * 30 + ["PA"] * 30 + [f"odd {i}" for i in range(10)]
    above = divided(few_bad, [True] * 60 + [False] * 10)
    assert above["worst"] == ""
    assert "no group of 20 films is below all others" in str(above["text"])
    assert divided(["AP"] * 30 + ["PA"] * 30, [True] * 45 + [False] * 15)["worst"] == "PA"


def test_answers_about_one_film_are_one_film() -> None:
    groups, films = ["AP"] * 60 + ["PA"] * 30, [str(i // 3) for i in range(90)]
    right = [True] * 60 + [False] * 30
    found = divided(groups, right, films)
    assert found["worst"] == "", "30 answers are of 10 films"
    more = divided(groups * 2, right * 2, films + [f"{name}b" for name in films])
    assert more["worst"] == "PA"
    assert "0.0% of 60 decisions on 20 films" in str(more["text"])


def test_the_column_of_a_finding_is_no_group() -> None:
    films = table().assign(edema=["0", "1"] * 100)
    assert "by_edema" in subgroups.columns_of(films)
    assert "by_edema" not in subgroups.columns_of(films, ("Edema", "Mass"))


def test_small_groups_are_merged_and_that_is_said() -> None:
    hospital = next(p for p in subgroups.describe(clean(), ("a", "b"), resamples=200) if p["column"] == "hospital")
    assert [group["name"] for group in hospital["groups"]] == ["A", "B", subgroups.OTHERS]
    assert set(hospital["merged"]) == {"C", "D"}
    assert hospital["groups"][2]["n"] == sum(hospital["merged"].values())
    assert "taken together as others" in hospital["text"]
    assert "C (" in hospital["text"]
    sex = next(p for p in subgroups.describe(clean(24), ("a", "b"), resamples=100) if p["column"] == "sex")
    assert (sex["groups"], sex["worst"]) == ([], "")
    assert "no two groups have 20 films" in sex["text"]


def test_the_test_of_a_gap_holds_its_level_where_patients_have_several_films() -> None:
    random, values = np.random.default_rng(3), []
    for _ in range(150):
        patient = np.repeat(np.arange(60), 3)
        inside = (random.random(60) < 0.3)[patient]
        bias = random.normal(0, 0.25, 60)[patient]
        hits = random.random(180) < np.clip(0.8 + bias, 0, 1)
        values.append(inside_against_outside(hits, inside, patient))
    assert np.mean(np.array(values) < 0.05) <= 0.09
    assert np.isnan(inside_against_outside([1, 0], [True, True], ["a", "b"]))
