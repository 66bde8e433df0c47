"""The figures of the statistics before and after they were mended, each as both ways of reckoning give it.

python -m benchmarks.findings.statistics_before_after --data COVID-QU-Ex --external external-cxr [--run RUN] \\
    > results/statistics-before-after.md

"Before" is what stood at commit c10a193 (of what a second review found, c194518), written again here in a few lines. No
model is tested on Test: the run is shown validation images and, where asked for, those of other hospitals.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

from benchmarks.findings import maps_before_after, notes, second_review
from benchmarks.speed.duplicates import CHANGES, Film, pictures, read
from trustcxr import catalogue, statistics
from trustcxr.data.auditing import alignment, duplicates
from trustcxr.evaluation import calibration, metrics
from trustcxr.report import markdown
from trustcxr.statistics import Bootstrap, interval, softmax

CLASSES = ("COVID-19", "Non-COVID", "Normal")
Row = tuple[str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--external", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="where the run is, or is trained, that views and maps are of")
    parser.add_argument("--trials", type=int, default=300, help="of each simulation")
    parser.add_argument("--copies", type=int, default=60)
    given = parser.parse_args()
    rows = [*errors(given.trials), *recalls(), *rare(), *areas(4 * given.trials), *tests(given.trials)]
    rows += copies(read(given.data), given.copies)
    rows += constant(given.external)
    rows += [*maps_before_after.order(), *maps_before_after.ceilings(given.data), *maps_before_after.compared()]
    rows += maps_before_after.words()
    about = []
    if given.run:
        about = [f"The run {maps_before_after.trained(given.run, given.data)}.", ""]
        rows += views(given.run, given.data) + parts(given.run, given.external)
        rows += [*maps_before_after.gate(given.run, given.data), *maps_before_after.verdict(given.run, given.data)]
    rows += second_review.rows(given.data, given.trials)
    rows += notes.rows(notes.openings())
    print("# Statistics, before and after\n")
    print(" ".join(__doc__.split("\n\n")[2].split()))
    print(
        f"\n`python -m benchmarks.findings.statistics_before_after`, {given.trials} trials a simulation, seeds fixed.\n"
    )
    print("\n".join([*about, *markdown.table(["what", "before", "after"], rows)]))


def _ends(pair: Any, digits: int = 3) -> str:
    return f"[{pair[0]:.{digits}f}, {pair[1]:.{digits}f}]"


# --- calibration error -----------------------------------------------------------------------------------------------


def _answers(sharpness: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (count, 3), sharpened, and the labels that were truly drawn from them."""
    random = np.random.default_rng(seed)
    honest = random.normal(0, 1.5, (count, 3))
    labels = (random.random((count, 1)) > softmax(honest).cumsum(1)).sum(1).clip(0, 2)
    return honest * sharpness, labels


def _true_error(sharpness: float) -> float:
    logits = np.random.default_rng(99).normal(0, 1.5, (400_000, 3)) * sharpness
    said, honest = softmax(logits), softmax(logits / sharpness)
    place = np.clip(np.ceil(said.max(1) * calibration.BINS).astype(int) - 1, 0, calibration.BINS - 1)
    gap = honest[np.arange(len(said)), said.argmax(1)] - said.max(1)
    return float(np.abs(np.bincount(place, gap, calibration.BINS)).sum() / len(said))


def errors(trials: int) -> Iterator[Row]:
    """The calibration error of 570 images, of networks whose true one is known."""
    for sharpness, name in ((1.0, "calibrated network"), (1.3, "a little too sure"), (2.0, "twice too sure")):
        truth, held, own, figures = _true_error(sharpness), np.zeros(2), np.zeros(2), []
        for trial in range(trials):
            logits, labels = _answers(sharpness, 570, trial)
            bootstrap = Bootstrap.over(np.arange(570), resamples=300, seed=trial)
            totals = bootstrap.totals(calibration.calibration_bins(softmax(logits), labels))
            plain = calibration.calibration_error(totals)
            pairs = ((float(plain[0]), interval(plain)), calibration.debiased_error(totals))
            held += [low <= truth + 1e-9 <= high + 1e-9 for _, (low, high) in pairs]
            own += [low <= error <= high for error, (low, high) in pairs]
            figures.append([error for error, _ in pairs])
        before, after = np.mean(figures, axis=0)
        yield f"calibration error, {name}, true {truth:.3f}: mean estimate", f"{before:.3f}", f"{after:.3f}"
        yield "- its 95 % interval holds the truth", f"{held[0] / trials:.1%}", f"{held[1] / trials:.1%}"
        yield "- its 95 % interval holds its own point", f"{own[0] / trials:.1%}", f"{own[1] / trials:.1%}"


# --- recall, rare shares, paired tests -------------------------------------------------------------------------------


def recalls() -> Iterator[Row]:
    """A perfect classifier where a class has three images of 63."""
    labels = np.repeat([0, 1, 2], [30, 30, 3])
    weights = Bootstrap.over(np.arange(63)).row_weights()
    drawn = np.stack([weights[:, labels == k].sum(1) for k in range(3)], axis=1)
    before = interval((drawn > 0).mean(axis=1))  # recall 1 of a class that was drawn, else 0
    found = metrics.classification(20 * np.eye(3)[labels], labels, np.arange(63), CLASSES)
    yield "macro recall of a perfect classifier, 30, 30 and 3 images", _ends(before), _ends(found["recall_macro_ci"])


def rare() -> Iterator[Row]:
    """Intervals of shares near 0."""
    for hits in (0, 1, 2, 5):
        bootstrap = Bootstrap.over(np.arange(120))
        means = bootstrap.means(np.arange(120) < hits)
        exact = stats.binomtest(hits, 120).proportion_ci(method="exact")
        before = [exact.low, exact.high] if hits == 0 else interval(means)
        yield f"{hits} of 120", _ends(before, 4), _ends(statistics.share_interval(bootstrap, means), 4)


def areas(trials: int) -> Iterator[Row]:
    """How often the interval of an area under the ROC curve near 1 holds the truth, of normal scores."""
    for positives, truth in ((10, 0.95), (20, 0.98), (100, 0.995)):
        positive = np.arange(3 * positives) < positives
        bootstrap = Bootstrap.over(np.arange(len(positive)), resamples=500)
        weights, random, held = bootstrap.row_weights(), np.random.default_rng(positives), np.zeros(2)
        for _ in range(trials):
            scores = random.normal(size=len(positive)) + np.sqrt(2) * stats.norm.ppf(truth) * positive
            found = statistics.auroc(scores, positive, weights)
            ends = interval(found), statistics.area_interval(bootstrap, found, positive)
            held += [low <= truth <= high for low, high in ends]
        what = f"AUROC of {positives} films with a finding and {2 * positives} without, in truth {truth}"
        yield f"{what}: 95 % interval holds that", f"{held[0] / trials:.1%}", f"{held[1] / trials:.1%}"


def tests(trials: int) -> Iterator[Row]:
    """False alarms at 5 % of forty patients with ten films each, whose films go the same way."""
    random, patients = np.random.default_rng(0), np.repeat(np.arange(40), 10)
    alarms = np.zeros((2, 2))
    for _ in range(trials):
        leaning = np.repeat(random.normal(0, 1, 40), 10)
        right = random.random((2, 400)) < special.expit(np.stack([leaning, -leaning]))
        change = right[1].astype(float) - right[0]
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        energy = leaning + random.normal(0, 1, 400)
        ours = statistics.sign_flip(change, patients), statistics.sign_flip(energy, patients)
        theirs = stats.binomtest(gained, gained + lost).pvalue, stats.wilcoxon(energy).pvalue
        alarms += np.array([theirs, ours]) <= 0.05
    for k, name in enumerate(("right or wrong (McNemar before)", "a measure (Wilcoxon before)")):
        before, after = (f"{share:.1%}" for share in alarms[:, k] / trials)
        yield f"false alarms at 5 %, ten films a patient, {name}", before, after


# --- duplicates ------------------------------------------------------------------------------------------------------


def _hashed(thumbs: np.ndarray) -> np.ndarray:
    """Perceptual hashes (N, 256) of thumbs: the signs of 16 x 16 low DCT coefficients about their median."""
    from scipy.fft import dctn

    low = dctn(thumbs.astype(float), axes=(1, 2))[:, :16, :16].reshape(len(thumbs), -1)
    return low > np.median(low, axis=1, keepdims=True)


def _found_before(thumbs: np.ndarray, copied: np.ndarray) -> float:
    """At most what was found: each copy held against its own film alone, 32 bits and a correlation of 0.9."""
    near = (_hashed(thumbs) != _hashed(copied)).sum(1) <= 32
    one, other = (alignment._detail((part / 255).astype(np.float32)) for part in (thumbs, copied))
    alike = alignment._correlated(one, other, np.ones(one.shape, bool)) >= 0.9
    return float((near & alike).mean())


def copies(films: list[Film], count: int) -> Iterator[Row]:
    """Changed copies of real films, other ones for each change, among all; and other films taken for copies."""
    order, total = np.random.default_rng(0).permutation(len(films)), len(films)
    count = min(count, total // len(CHANGES))
    chosen = {name: order[k * count : (k + 1) * count] for k, name in enumerate(CHANGES)}
    thumbs, trimmed = pictures(films)
    copied = [pictures([change(films[i]) for i in chosen[name]]) for name, change in CHANGES.items()]
    everything = [np.concatenate([own, *(part[k] for part in copied)]) for k, own in enumerate((thumbs, trimmed))]
    found = duplicates.find_duplicates([str(i) for i in range(len(everything[0]))], *everything)
    pairs = set(zip(found["first"], found["second"], strict=True))
    for k, name in enumerate(CHANGES):
        before = _found_before(thumbs[chosen[name]], copied[k][0])
        hit = np.mean([(int(i), total + k * count + n) in pairs for n, i in enumerate(chosen[name])])
        yield f"copies found, {name}, {count} among {total} films", f"{before:.0%}", f"{hit:.0%}"
    alarmed = {film for pair in pairs if pair[1] < total for film in pair}
    yield (
        "films paired that are no planted copy (each pair was looked at: cropped copies that the data hold)",
        "0",
        f"{len(alarmed)}",
    )
    origin = np.concatenate([np.arange(total), *chosen.values()])
    own = {(int(origin[a]), int(origin[b])) for a, b in pairs if b >= total}
    known = {pair for pair in pairs if pair[1] < total}
    wrong = {(a, b) for a, b in own if a != b and (min(a, b), max(a, b)) not in known}
    yield "films taken for a copy of another film, planted copies and all", "not measured", f"{len(wrong)}"


# --- other data, and views -------------------------------------------------------------------------------------------


def constant(external: Path) -> Iterator[Row]:
    """What one and the same answer to everything has on the data from elsewhere, as a whole and in parts."""
    from trustcxr.data.layouts import read_manifest

    table = read_manifest(external).table
    whole = table["class"].value_counts(normalize=True).max()
    said = {"all in one": table}
    said |= {f"strict_external {value}": part for value, part in table.groupby("strict_external")}
    said |= {str(value): part for value, part in table.groupby("source") if "Actualmed" in str(value)}
    for name, part in said.items():
        own = part["class"].value_counts(normalize=True).max()
        before = f"{whole:.1%}, not said" if name == "all in one" else "not apart"
        yield (
            f"constant answer on {external.name}, {name}, n {len(part)}",
            before,
            f"{own:.1%} (balanced {1 / part['class'].nunique():.1%})",
        )


def _percent(part: dict[str, Any]) -> str:
    low, high = part["accuracy_ci"]
    return f"{part['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def _predicted(folder: Path, data: Path, split: str | None, *, seen: bool) -> dict[str, Any]:
    from trustcxr.data import load_dataset
    from trustcxr.evaluation import predictions
    from trustcxr.evaluation.run import as_before_refit, load_run

    run = as_before_refit(load_run(folder))
    dataset = load_dataset(data, split, run.size, classes=run.classes)
    return metrics.from_predictions(predictions.predict(run, dataset, views=seen), run.classes).plain()


def views(folder: Path, data: Path) -> list[Row]:
    """What a run has on validation images without the lungs, by how they are hidden."""
    found = _predicted(folder, data, "Val", seen=True)
    rows = []
    for view in catalogue.VIEWS:
        part = found["shortcuts"][view]
        before = _percent(part) if view in ("lungs_blacked_out", "lungs_only") else "not measured"
        rows.append((f"{folder.name}, Val, n {part['n']}, {view.replace('_', ' ')}", before, _percent(part)))
    worst = found["without_lungs"]
    rows.append(("- without the lungs, the headline", _percent(found["shortcuts"]["lungs_blacked_out"]),
                 f"{_percent(worst)} ({worst['view'].replace('_', ' ')})"))  # fmt: skip
    return rows


def parts(folder: Path, external: Path) -> list[Row]:
    """What a run has on data from elsewhere, in one and apart."""
    found = _predicted(folder, external, None, seen=False)
    said = {"all": found["clean"]} | {
        f"{column} {name}": part
        for column in ("strict_external", "source")
        for name, part in found["by_group"].get(column, {}).items()
    }
    rows = []
    for name, part in said.items():
        balanced = f", balanced {part['balanced_accuracy']:.1%}, constant {part['constant_answer']:.1%}"
        before = _percent(part) if not name.startswith("strict") else "not apart"
        rows.append((f"{folder.name}, {external.name}, {name}, n {part['n']}", before, _percent(part) + balanced))
    return rows


if __name__ == "__main__":
    main()
