"""What is no chest film of the kind that a run was trained on, and how much of it the run's page refuses.

python -m benchmarks.findings.out_of_distribution RUN --data COVID-QU-Ex --external DIR --ct DIR --raw DIR --out results

RUN has its familiarity fitted (`trustcxr familiarity RUN --data COVID-QU-Ex`). Its thresholds accept 95 % of the real
validation films; foreign pictures chose none of them. Beside it: the page's simple checks of a film's layout, a refusal
by reconstruction in the manner of Chester (`mlmed/dl-web-xray`, which refuses below a structural similarity of 0.60):
our own stand-in for it, principal components of the training films, and not Chester's autoencoder.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trustcxr.data import load_dataset
from trustcxr.data.images import plausibility, squares
from trustcxr.data.phantom.film import render
from trustcxr.evaluation.run import load_run
from trustcxr.explain import familiarity, measures
from trustcxr.report import markdown
from trustcxr.results import files
from trustcxr.results.documents import Share
from trustcxr.statistics import Bootstrap, share_interval

REFUSED_BELOW = 0.60  # structural similarity, of Chester
CROPS, DRAWN, TURNED = 8, 200, 200
PHOTOGRAPHS = ("astronaut", "camera", "cat", "coffee", "coins", "clock", "rocket", "brick", "grass", "gravel", "horse")
OTHERS = ("moon", "page", "text", "colorwheel", "microaneurysms", "hubble_deep_field", "immunohistochemistry")
METHODS = ("the score", "the network alone", "the film alone", "simple checks", "score or checks", "reconstruction",
           "reconstruction, own threshold")  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Pictures of one kind, (N, 1, S, S) in [0, 1] as the network has them; those of one `group` are of one origin."""

    name: str
    images: Tensor
    groups: np.ndarray
    real: bool = False

    @classmethod
    def drawn(cls, name: str, images: Tensor) -> "Kind":
        """Pictures that have nothing to do with each other."""
        return cls(name, images, np.arange(len(images)).astype(str))


class Reconstruction:
    """Films redrawn from principal components of training films: the structural similarity to what is redrawn."""

    def __init__(self, films: Tensor, components: int = 64) -> None:
        rows = films.flatten(1).double()
        self.mean = rows.mean(0)
        torch.manual_seed(0)  # the components are found by random projection (Halko et al. 2011)
        self.axes = torch.pca_lowrank(rows, components, niter=4)[2].T

    def similarity(self, images: Tensor) -> Tensor:
        """(N,), of images (N, 1, S, S)."""
        rows = images.flatten(1).double() - self.mean
        redrawn = ((rows @ self.axes.T) @ self.axes + self.mean).reshape(images[:, 0].shape)
        return measures.ssim(images[:, 0], redrawn.clamp(0, 1).float()).nan_to_num(nan=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    for name in ("data", "external", "ct", "raw"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    run, found = load_run(given.run, on="cpu"), familiarity.load(given.run)
    if found is None:
        parser.error(f"{given.run}: fit it first with trustcxr familiarity")
    splits = run.trained_by.data.splits
    train, val, test = (load_dataset(given.data, s, run.size) for s in (splits.train, splits.val, splits.test))
    redraw = Reconstruction(_pixels(train))
    kept = redraw.similarity(_pixels(val)).double()
    ends = found.views(run, _pixels(val)).quantile(familiarity.ACCEPTED, dim=0)
    own = float(kept.quantile(1 - familiarity.ACCEPTED))

    def refused(images: Tensor) -> dict[str, np.ndarray]:
        views, alike = found.views(run, images), redraw.similarity(images)
        score, checks = views.amax(1) > found.threshold, torch.tensor([_doubted(image) for image in images])
        votes = (score, views[:, 0] > ends[0], views[:, 1] > ends[1], checks, score | checks, alike < REFUSED_BELOW)
        return dict(zip(METHODS, [v.numpy() for v in (*votes, alike < own)], strict=True))

    kinds = [Kind(f"real films: Test of {given.data.resolve().name}", _pixels(test), test.groups, real=True)]
    kinds += list(_elsewhere(run.size, given.external, given.raw)) + list(_foreign(run.size, _pixels(test), given.ct))
    table = pd.concat([_rows(kind, refused(kind.images)) for kind in kinds], ignore_index=True)
    stem = f"out-of-distribution-{given.data.resolve().name}"
    files.write_table(given.out / f"{stem}.csv", table)
    turned = counted(test.classes[label] for label in test.labels[:TURNED])
    about = f"{run.name} (weights {run.trained_by.model.weights}, {run.trained_by.training.epochs} epochs)"
    text = page(table, about, run.size, given.data.resolve().name, len(val), own, turned)
    (given.out / f"{stem}.md").write_text(text)


def _pixels(data: object) -> Tensor:
    return torch.cat(list(familiarity.batches(data)))  # type: ignore[arg-type]


def _doubted(image: Tensor) -> bool:
    return bool(plausibility.doubts(plausibility.thumbnail((255 * image[0]).round().byte().numpy())))


def _elsewhere(size: int, external: Path, raw: Path) -> Iterable[Kind]:
    """Real frontal chest films of other origin, which should be accepted."""
    data = load_dataset(external, size=size)
    strict, films = data.table["strict_external"].astype(str).eq("1").to_numpy(copy=True), _pixels(data)
    for name, rows in (("other hospitals (strict)", strict), ("web and publications", ~strict)):
        yield Kind(f"real films: {name}", films[torch.from_numpy(rows)], data.groups[rows], real=True)
    files_as_found = load_dataset(raw, size=size)
    yield Kind("real films: raw-samples", _pixels(files_as_found), files_as_found.groups, real=True)


def _foreign(size: int, films: Tensor, ct: Path) -> Iterable[Kind]:
    slices = load_dataset(ct, size=size)
    yield Kind("CT slices", _pixels(slices), slices.groups)
    yield _cropped("photographs in grey, 8 crops each", [*_samples(), *map(_skimage, PHOTOGRAPHS)], size)
    yield _cropped("other pictures in grey, 8 crops each", list(map(_skimage, OTHERS)), size)
    for name, change in TURNS.items():
        yield Kind.drawn(f"Test films {name}", change(films[:TURNED]))
    generator = torch.Generator().manual_seed(0)
    yield Kind.drawn("noise, each pixel by itself", torch.rand(DRAWN, 1, size, size, generator=generator))
    coarse = torch.rand(DRAWN, 1, 8, 8, generator=generator)
    yield Kind.drawn("noise of 8 x 8 cells, smooth", functional.interpolate(coarse, (size, size), mode="bilinear"))
    shades = torch.linspace(0, 1, 11)[:, None, None, None].expand(-1, 1, size, size)
    yield Kind.drawn("one grey level", shades.contiguous())
    phantoms = [squares.resize_image(render("Normal", seed, 128).image, size) for seed in range(60)]
    yield Kind.drawn("synthetic films of `trustcxr data phantom`", _stacked(phantoms))


TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned by 90 degrees": lambda x: x.rot90(1, (2, 3)),
    "turned by 180 degrees": lambda x: x.rot90(2, (2, 3)),
    "upside down": lambda x: x.flip(2),
    "with left and right changed": lambda x: x.flip(3),
    "inverted": lambda x: 1 - x,
}


def _samples() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(picture).convert("L") for picture in load_sample_images().images]


def _skimage(name: str) -> Image.Image | None:
    """A picture that scikit-image ships; None where it would have to be fetched."""
    from skimage import data

    try:
        pixels = np.asarray(getattr(data, name)())
    except Exception:
        return None
    return Image.fromarray((pixels * 255).astype(np.uint8) if pixels.dtype == bool else pixels).convert("L")


def _cropped(name: str, pictures: list[Image.Image | None], size: int) -> Kind:
    random, crops, groups = np.random.default_rng(0), [], []
    for number, picture in enumerate(p for p in pictures if p is not None):
        for _ in range(CROPS):
            share = random.uniform(0.5, 1)
            width, height = (int(side * share) for side in picture.size)
            left, top = (int(random.integers(0, side - part + 1)) for side, part in
                         zip(picture.size, (width, height), strict=True))  # fmt: skip
            crop = np.asarray(picture.crop((left, top, left + width, top + height)))
            crops.append(squares.resize_image(crop, size))
            groups.append(str(number))
    return Kind(name, _stacked(crops), np.array(groups))


def _stacked(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).float().div_(255)[:, None]


def _rows(kind: Kind, refused: dict[str, np.ndarray]) -> pd.DataFrame:
    bootstrap = Bootstrap.over(kind.groups)
    rows = []
    for method, votes in refused.items():
        low, high = share_interval(bootstrap, bootstrap.means(votes.astype(float)))
        about = {"kind": kind.name, "real": kind.real, "n": len(votes), "origins": len(set(kind.groups))}
        rows.append(about | {"method": method, "refused": float(votes.mean()), "low": low, "high": high})
    return pd.DataFrame(rows)


def counted(names: Iterable[str]) -> str:
    """How many of each name, in words."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())


def page(table: pd.DataFrame, run: str, size: int, data: str, validated: int, own: float, turned: str) -> str:
    """The page, from the rows of the CSV file; turned: the classes of the films that are turned."""
    head = ["pictures", "n", *METHODS]
    lines = []
    for kind, rows in table.groupby("kind", sort=False):
        cells = {r.method: markdown.percent(Share(value=r.refused, ci=(r.low, r.high))) for r in rows.itertuples()}
        lines.append([str(kind), str(rows["n"].iloc[0]), *(cells[m] for m in METHODS)])
    command = (
        f"trustcxr familiarity RUN --data {data}; python -m benchmarks.findings.out_of_distribution RUN --data {data} "
        "--external external-cxr --ct ct-mini --raw raw-samples"
    )
    return "\n".join([
        "# What is unlike the films that a network was trained on, and how much of it is refused\n",
        f"`{command}`. RUN: {run} at {size} pixels, one seed. Percent refused, with 95 % intervals over patients, "
        "groups or pictures. The first four rows are real frontal chest films: what is refused there is a false alarm "
        "(of raw-samples three are also among those of the web and publications, one among those of other hospitals). "
        "The thresholds of the score, of the network alone, of the film alone and `own threshold` accept 95 % of "
        f"{validated} real Val films of {data} each; no foreign picture chose any of them. Research software, not for "
        "diagnosis.\n",
        "`the score` is what `trustcxr predict` and the page warn by: the larger of `the network alone` (components of "
        "the channel means of its last two stages) and `the film alone` (components of the film in 32 x 32 pixels); "
        "each of these stands beside it at its own threshold. `simple checks`: layout, noise, contrast, as "
        "`trustcxr data check` uses them (colour was taken out of every picture first); their limits were set before, "
        "with real films of every split and of the other collections at hand, so their false alarms here are no "
        "forecast. `reconstruction`: redrawn "
        "from 64 principal components of the training films and refused below a structural similarity of 0.60. That "
        "is our own stand-in for the refusal of Chester (`mlmed/dl-web-xray`), whose autoencoder it is not; "
        f"`own threshold` is {own:.2f}, which accepts 95 % of Val. No lateral film is among the data at hand: what "
        "is said of lateral films by their DICOM header is refused, what is not was not measured.\n",
        "Films of the web and publications are of collections that COVID-QU-Ex drew from too. CT: whose a slice is, is "
        "not known, and some are of one patient, so that interval, which takes each for a patient, is too narrow. "
        f"The Test films that were turned, mirrored or inverted are the first {TURNED} of the list: {turned}.\n",
        *markdown.table(head, lines),
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
