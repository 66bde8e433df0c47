"""Where films come from, guessed from how they look: a list with a column `source` to balance training by.

    python -m benchmarks.findings.recovered --data covidqu-midi --out LIST.csv [--check external-cxr]

COVID-QU-Ex does not say which collection a film is of. Collections differ in how films were exposed, scaled and saved,
so here films are sorted into SOURCES kinds by k-means on that: grey levels, how fine their structure is, how bright
their border is. These are of the whole film, lungs and all, so that a class can be taken for a kind. `--check`: how
well such kinds agree with the collections of films of which these are known (adjusted mutual information: 0 for
chance, 1 for the same).
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.preprocessing import StandardScaler

from benchmarks.findings.seeds import listed
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.dataset import Dataset
from trustcxr.results import files

SOURCES, SIZE = 4, 64
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
BANDS, BORDER = 6, 4


def main() -> None:
    """Write the list, and say how well it does where that can be known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", type=Path, help="films of known collections")
    given = parser.parse_args()
    sorted_by = kinds(load_dataset(given.data, split="Train", size=SIZE))
    if given.check:
        films = load_dataset(given.check, size=SIZE)
        alike = adjusted_mutual_info_score(films.table["source"], sorted_by(films))
        by_class = adjusted_mutual_info_score(films.table["source"], films.table["class"])
        print(f"Agreement on {given.check.name} (adjusted mutual information; 0: chance, 1: the same):")
        print(f"kinds and collections {alike:.3f}; classes and collections {by_class:.3f}")
    table, given_as = read_manifest(given.data).table, given.data.resolve()
    root = given_as if given_as.is_dir() else given_as.parent
    parts = [load_dataset(given.data, split=split, size=SIZE) for split in ("Train", "Val")]
    known = {
        name: f"kind-{kind}" for part in parts for name, kind in zip(part.sample_ids, sorted_by(part), strict=True)
    }
    some = table[table["sample_id"].isin(known)]
    rows = listed(some, given.data).assign(source=some["sample_id"].map(known))
    for kind in ("lung_mask", "infection_mask"):
        rows[kind] = [str(root / path) if path else "" for path in some[kind].fillna("")]
    files.write_table(given.out, rows)
    print(rows.groupby(["split", "label", "source"]).size().unstack().to_string())


def kinds(train: Dataset) -> Callable[[Dataset], np.ndarray]:
    """What sorts films into the kinds that k-means finds in training films."""
    scale = StandardScaler().fit(looks(train))
    found = KMeans(SOURCES, n_init=10, random_state=0).fit(scale.transform(looks(train)))
    return lambda films: found.predict(scale.transform(looks(films)))


def looks(films: Dataset) -> np.ndarray:
    """Quantiles of the greys, energy by spatial frequency, mean grey of each border: (N, F)."""
    pixels = np.asarray(films.images)[:, 0] / 255
    greys = np.quantile(pixels.reshape(len(pixels), -1), QUANTILES, axis=1).T
    energy = np.abs(np.fft.fft2(pixels - pixels.mean((1, 2), keepdims=True))) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
    edges = np.geomspace(1 / SIZE, radius.max() + 1e-9, BANDS + 1)
    rings = [(radius >= low) & (radius < high) for low, high in pairwise(edges)]
    fine = np.log(np.stack([energy[:, ring].mean(1) for ring in rings], axis=1) + 1e-9)
    ends = (pixels[:, :BORDER], pixels[:, -BORDER:], pixels[:, :, :BORDER], pixels[:, :, -BORDER:])
    return np.column_stack([greys, fine, *(end.mean((1, 2)) for end in ends)])


if __name__ == "__main__":
    main()
