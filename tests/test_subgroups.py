"""For whom is a model bad? Groups by any column, small ones merged, the gap tested."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trustcxr.audit import subgroups
from trustcxr.statistics import holm, inside_against_outside
from trustcxr.storage.schemas import Division

ABC = {"class": ["a", "b", "c"] * 40}


def table(count: int = 200) -> pd.DataFrame:
    random = np.random.default_rng(0)
    columns = {
        "sample_id": [str(i) for i in range(count)],
        "sex": random.choice(["F", "M"], count),
        "Patient Age": [f"{random.integers(1, 95):03d}Y" for _ in range(count)],
        "dose": random.random(count).round(4).astype(str),
        "hospital": random.choice(["A", "B", "C", "D"], count, p=[0.6, 0.3, 0.06, 0.04]),
        "file": [f"{i}.png" for i in range(count)],
        "note": ["odd" if i < 3 else None for i in range(count)],
    }
    return pd.DataFrame(columns).assign(scanner="one", lung_mask="x")


def test_columns_that_divide_the_images_are_found_and_numbers_become_bands() -> None:
    found = subgroups.columns_of(table())
    assert set(found) == {"by_sex", "by_Patient Age", "by_dose", "by_hospital", "by_sex and Patient Age"}
    ages = pd.to_numeric(table()["Patient Age"].str.rstrip("Y"))
    for band, part in ages.groupby(found["by_Patient Age"]):
        low, high = (int(end) for end in str(band).split(" to "))
        assert part.between(low, high).all()
    assert set(found["by_Patient Age"]) <= {"0 to 19", "20 to 39", "40 to 59", "60 to 79", "80 to 200"}
    assert found["by_dose"].nunique() == 4
    assert found["by_dose"].value_counts().max() <= 51
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"Patient Sex": random.choice(["F", "M", ""], 300), "age": random.integers(20, 80, 300)})
    crossed, known = subgroups.columns_of(frame)["by_Patient Sex and age"], frame["Patient Sex"] != ""
    assert (crossed[~known] == subgroups.UNKNOWN).all(), "sex and age are crossed if both are known"
    assert set(crossed[known]) == {f"{sex}, {band}" for sex in "FM" for band in ("20 to 39", "40 to 59", "60 to 79")}
    assert not any("and" in name for name in subgroups.columns_of(frame.drop(columns="age")))


def clean(count: int = 200) -> pd.DataFrame:
    about = table(count)
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, count)
    right = random.random(count) < np.where(about["sex"] == "M", 0.6, 0.97)
    said = np.where(right, labels, 1 - labels)
    logits = [np.array([1.0 - k, float(k)]) for k in said]
    frame = pd.DataFrame({"sample_id": about["sample_id"], "group": about["sample_id"], "label": labels})
    return pd.concat([frame.assign(logits=logits), subgroups.columns_of(about)], axis=1)


def test_the_worst_group_has_its_gap_and_small_groups_are_merged_and_named() -> None:
    def described(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
        return {part.column: part.plain() for part in subgroups.describe(rows, ("a", "b"), resamples=200)}

    rows = clean()
    found, few = described(rows), described(clean(24))["sex"]
    sex, hospital = found["sex"], found["hospital"]
    assert sex["worst"] == "M"
    men = next(group for group in sex["groups"] if group["name"] == "M")
    inside = (rows["by_sex"] == "M").to_numpy()
    right = np.stack(rows["logits"]).argmax(1) == rows["label"]
    assert men["accuracy"]["value"] == pytest.approx(right[inside].mean())
    assert men["gap"]["value"] == pytest.approx(right[inside].mean() - right[~inside].mean())
    assert men["settled"]
    counts = [[(right & part).sum(), (~right & part).sum()] for part in (inside, ~inside)]
    assert men["p_value"] == pytest.approx(stats.fisher_exact(counts)[1])
    tested = [group["p_value"] for part in found.values() for group in part["groups"]]
    assert men["p_value"] < men["p_corrected"] <= len(tested) * men["p_value"] + 1e-12
    for name in ("auroc_macro", "ece", "accuracy"):
        assert men[name]["ci"][0] <= men[name]["value"] <= men[name]["ci"][1]
    assert all(words in sex["text"] for words in ("worst is M", "settled"))
    assert not any(group["settled"] for group in found["dose"]["groups"])
    assert [group["name"] for group in hospital["groups"]] == ["A", "B", subgroups.OTHERS]
    assert set(hospital["merged"]) == {"C", "D"}
    assert hospital["groups"][2]["n"] == sum(hospital["merged"].values())
    assert all(words in hospital["text"] for words in ("taken together as others", "C ("))
    assert (few["groups"], few["worst"]) == ([], "")
    assert "no two groups have 20 images" in few["text"]


def divided(groups: list[str], right: list[bool], images: list[str] | None = None) -> dict[str, Any]:
    """What is said of one column, by its groups and whether each answer is right."""
    names, logits = [str(i) for i in range(len(groups))], [np.eye(2)[0 if hit else 1] for hit in right]
    rows = pd.DataFrame({"sample_id": names, "group": images or names, "label": 0, "logits": logits, "by_view": groups})
    rows = rows if images is None else rows.assign(image=images)
    return dict(subgroups.describe(rows, ("a", "b"), resamples=50)[0].plain())


def test_groups_without_an_error_have_a_gap_that_is_not_known_exactly() -> None:
    (few, many) = sorted(divided(["A"] * 20 + ["B"] * 200, [True] * 220)["groups"], key=lambda group: group["n"])
    low, high = few["gap"]["ci"]
    assert few["gap"]["value"] == 0
    assert low == pytest.approx(-(1 - few["accuracy"]["ci"][0]), abs=0.02), "of 20 images as many may be wrong"
    assert high < 0.03
    assert many["gap"]["ci"][0] < 0


def test_a_group_is_the_worst_only_of_two_of_enough_images_and_where_it_is_below_the_rest() -> None:
    alone = divided(["AP"] * 40 + ["PA"] * 10, [True] * 38 + [False] * 12)
    assert alone["worst"] == ""
    assert alone["text"].startswith("by view: the only group of 20 images is AP with 95.0% of 40 images, +95.0% [")
    assert "settled (p " in alone["text"]
    assert alone["text"].endswith("corrected for 1 comparison)")
    above = divided(["AP"] * 30 + ["PA"] * 30 + [f"odd {i}" for i in range(10)], [True] * 60 + [False] * 10)
    assert above["worst"] == ""
    assert "no group of 20 images is below all others" in above["text"]
    assert divided(["AP"] * 30 + ["PA"] * 30, [True] * 45 + [False] * 15)["worst"] == "PA"
    groups, right, images = ["AP"] * 60 + ["PA"] * 30, [True] * 60 + [False] * 30, [str(i // 3) for i in range(90)]
    assert divided(groups, right, images)["worst"] == "", "30 answers are of 10 images"
    more = divided(groups * 2, right * 2, images + [f"{name}b" for name in images])
    assert more["worst"] == "PA"
    assert "0.0% of 60 decisions on 20 images" in more["text"]


def judged(images: pd.DataFrame, wrong: Any) -> dict[str, Division]:
    """What is said of each column of a data set's table, of a model that is wrong on these images alone."""
    names, labels = [str(i) for i in range(len(images))], pd.factorize(images["class"])[0]
    said = np.where(wrong, labels + 1, labels) % 3
    rows = pd.DataFrame({"sample_id": names, "group": names, "label": labels, "logits": list(np.eye(3)[said])})
    rows = pd.concat([rows, subgroups.columns_of(images.reset_index(drop=True))], axis=1)
    found = subgroups.describe(rows, ("a", "b", "c"), without=subgroups.left_out(images), resamples=50)
    return {division.column: division for division in found}


def test_a_column_whose_groups_are_all_too_small_is_named_with_the_reason() -> None:
    few = pd.DataFrame({"class": ["a", "b", "c"] * 12, "sex": ["F", "M"] * 18, "hospital": ["A"] * 20 + ["B"] * 16})
    few = few.assign(age=[f"{i + 30}" for i in range(36)], scanner=[f"s{i // 4}" for i in range(36)])
    found = judged(few, few["sex"] == "M")
    assert set(found) == {"sex", "age", "scanner", "hospital", "sex and age"}
    sizes = "F (18), M (18)"
    assert found["sex"].text == f"by sex: no two groups have 20 images; too small to stand alone: {sizes}"
    assert found["scanner"].text.startswith("by scanner: no two groups have 20 images")
    assert found["age"].text.startswith("by age: the only group of 20 images is 40 to 59 with ")
    assert found["hospital"].text.startswith("by hospital: the only group of 20 images is A with ")
    many = pd.DataFrame({**ABC, "scanner": [f"s{i}" for i in range(12) for _ in range(10)]})
    many.loc[:4, "scanner"] = "s1"
    scanner = judged(many, many["scanner"] == "s1")["scanner"]
    assert scanner.merged["s1"] == 15
    assert (scanner.groups, scanner.worst) == ([], "")
    assert "by scanner: no two groups have 20 images; too small to stand alone: s1 (15)" in scanner.text
    assert scanner.text.endswith(" and 6 more")


def test_a_column_of_more_values_than_half_the_images_is_named_and_names_of_images_are_not() -> None:
    images = pd.DataFrame({"class": ["a", "b", "c"] * 12, "scanner": [f"s{i % 20}" for i in range(36)]})
    images["series"] = [str(1_000 + i % 24) for i in range(36)]
    images = images.assign(file=[f"{i}.png" for i in range(36)], seed=[str(i * 7) for i in range(36)])
    images["nearly"] = [f"n{i // 2 if i < 4 else i}" for i in range(36)]
    found = judged(images, images.index > 30)
    assert {name: division.text for name, division in found.items()} == {
        "scanner": "by scanner: not judged, since it has 20 values on 36 images",
        "series": "by series: not judged, since it has 24 values on 36 images",
    }
    assert not len(subgroups.columns_of(images).columns)


def test_two_values_are_one_comparison_and_groups_of_which_none_can_stand_alone_are_none() -> None:
    images = pd.DataFrame({**ABC, "sex": ["F", "M"] * 60})
    small = images.assign(scanner=[f"s{i // 10}" if i < 60 else "" for i in range(120)])
    wrong = pd.Series(np.arange(120) % 8 == 1)
    alone, beside = judged(images, wrong)["sex"], judged(small, wrong)
    assert [group.p_corrected for group in beside["sex"].groups] == [group.p_corrected for group in alone.groups]
    assert [group.p_corrected for group in alone.groups] == [group.p_value for group in alone.groups], "one comparison"
    assert beside["scanner"].groups == []


def test_the_class_under_another_name_is_no_group_and_that_is_said() -> None:
    classes = ["COVID", "Pneumonia", "Normal"]
    images = pd.DataFrame({"class": classes * 40, "sex": ["F", "M"] * 60})
    finer = {"COVID": ["COVID-19"], "Pneumonia": ["SARS", "Klebsiella"], "Normal": ["No finding", "none"]}
    images["diagnosis"] = [finer[name][i % len(finer[name])] for i, name in enumerate(images["class"])]
    images["written"] = images["diagnosis"].where(images.index > 5, "")  # of some images nobody wrote it
    images["severity"] = np.where(images["class"] == "COVID", np.where(images.index % 2, "mild", "severe"), "")
    images["ward"] = images["diagnosis"].where(images.index != 0, "SARS")
    found = judged(images, images["class"] == "COVID")
    assert set(found) == {"sex", "diagnosis", "written", "severity", "ward"}
    for name in ("diagnosis", "written"):
        assert (found[name].groups, found[name].worst) == ([], "")
        why = "not judged, since each of its values belongs to one class: a gap would be one between classes"
        assert found[name].text == f"by {name}: {why}"
        assert f"by_{name}" not in subgroups.columns_of(images)
    assert found["severity"].groups, "it says more than the class"
    assert found["ward"].worst == "COVID-19", "one value is of two classes"
    # A few images in each of many groups are of one class by chance: what is said is that they are few.
    images = pd.DataFrame({"class": np.repeat(classes, 40), "scanner": [f"s{i // 10}" for i in range(120)]})
    assert "no two groups have 20 images" in judged(images, images["class"] == "COVID")["scanner"].text
    # As many as there are classes are the classes, however few images there are.
    images = images[::4].reset_index(drop=True).assign(code=lambda t: t["class"].str[0])
    assert "a gap would be one between classes" in judged(images, images["class"] == "COVID")["code"].text


def test_columns_and_groups_of_the_same_images_are_judged_and_corrected_for_once() -> None:
    images = pd.DataFrame({**ABC, "source": ["X"] * 40 + ["Y"] * 50 + ["Z"] * 30})
    wrong = images["source"] == "Y"
    alone = judged(images, wrong)["source"]
    assert (alone.worst, alone.same_groups) == ("Y", [])
    licences = {"X": "free", "Y": "not stated", "Z": ""}
    both = images.assign(licence=images["source"].map(licences), maker=images["source"].str.lower() + " and sons")
    found = judged(both, wrong)
    assert set(found) == {"source"}
    assert found["source"].same_groups == ["licence", "maker"]
    assert found["source"].text.startswith("by source, and exactly alike by licence and maker: worst is Y with 0.0% ")
    assert "corrected for 3 comparisons" in found["source"].text
    assert [g.p_corrected for g in found["source"].groups] == [g.p_corrected for g in alone.groups]
    found = judged(images.assign(licence=["free"] * 20 + ["paid"] * 20 + ["none"] * 50 + ["free"] * 30), wrong)
    assert "corrected for 5 comparisons" in found["source"].text
    assert "these are the images of" not in found["source"].text
    assert found["licence"].worst == "none"
    assert "; these are the images of Y by source" in found["licence"].text
    same = [next(g for g in found[c].groups if g.name == n) for c, n in (("source", "Y"), ("licence", "none"))]
    assert same[0].p_corrected == same[1].p_corrected == pytest.approx(5 * (same[0].p_value or 0))


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_columns_of_two_values_alarm_falsely_in_one_audit_of_twenty() -> None:
    """Four columns without a gap, corrected as `describe` does; one to five images a patient."""
    random, alarms, trials = np.random.default_rng(11), 0, 2000
    patient = np.repeat(np.arange(80), random.integers(1, 6, 80))
    for _ in range(trials):
        hits = random.random(len(patient)) < np.clip(0.7 + random.normal(0, 0.2, 80)[patient], 0, 1)
        columns = ((random.random(80) < 0.5)[patient] for _ in range(4))
        alarms += bool(holm([inside_against_outside(hits, inside, patient) for inside in columns]).min() < 0.05)
    assert 0.04 <= alarms / trials <= 0.06


def test_the_test_of_a_gap_holds_its_level_where_patients_have_several_images() -> None:
    random, values = np.random.default_rng(3), []
    for _ in range(150):
        patient = np.repeat(np.arange(60), 3)
        inside = (random.random(60) < 0.3)[patient]
        bias = random.normal(0, 0.25, 60)[patient]
        hits = random.random(180) < np.clip(0.8 + bias, 0, 1)
        values.append(inside_against_outside(hits, inside, patient))
    assert np.mean(np.array(values) < 0.05) <= 0.09
    assert np.isnan(inside_against_outside([1, 0], [True, True], ["a", "b"]))


def test_columns_of_the_masks_do_not_divide_and_the_reason_is_said() -> None:
    """A mask's area tells the class, so that its quarters would be groups of classes."""
    area = np.linspace(0, 1, 60).round(3).astype(str)
    images = pd.DataFrame({"class": ["a", "b", "c"] * 20, "sex": ["F", "M"] * 30, "infection_fraction": area})
    images["has_infection_mask"] = ["0", "1"] * 30
    found = judged(images, images["sex"] == "M")
    assert found["sex"].groups
    assert found["infection_fraction"].groups == []
    assert all(words in found["infection_fraction"].text for words in ("infection_fraction", "of the masks"))
    assert "has_infection_mask" not in found
