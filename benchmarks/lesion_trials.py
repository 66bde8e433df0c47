"""Add a trial to the lesion study's table: accuracy, worst case and lesion effect of a run on validation images.

python -m benchmarks.lesion_trials RUN --data DATA --trial NAME --what TEXT [--against RUN] [--table TABLE]

A trial, no part of the package. The lesion effect is measured with the fills of the package, and with one that no
training sees: healthy lung of the same image with its phases scrambled. The figure is the smaller of effect and fall by
the least favourable fill, as the package reports it. `--against` gives the paired difference from an earlier RUN of
this script on the same images: this one less that one.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.trials import TABLE, append_trial, percent, typed_command
from trustcxr import attacks
from trustcxr.data import load_dataset
from trustcxr.data.dataset import Dataset
from trustcxr.data.lesion_edits import FILLS, HEALTHY, compute_healthy_grey
from trustcxr.data.loader import to_pixels
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.explain import lesion_effect
from trustcxr.statistics import paired
from trustcxr.storage.schemas import LesionDocument, RunDocument

IMAGES_FILE = "lesion_trial.csv"  # in the run's folder: a row for each image
UNSEEN = ("drawn", "phase")  # fills that no training sees
BATCH = 128


def fill_phase(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
    """Fill with the image's healthy lung, its amplitude spectrum kept and its phases drawn at random.

    The spectrum is that of the healthy lung less its mean, and 0 elsewhere. The result has its mean and variance. The
    phases depend on the image alone. Fills with healthy grey if the lesion leaves less than HEALTHY of the lungs.
    """
    free, size = (lung & ~lesion)[:, None], images.shape[-2:]
    count, grey = free.sum((1, 2, 3), keepdim=True), compute_healthy_grey(images, lung, lesion)
    noise = []
    for image in images:
        generator = torch.Generator().manual_seed(round(255 * float(image.double().sum())))
        noise.append(torch.randn(1, *size, generator=generator).to(images))
    phases = torch.polar(torch.ones(()), torch.fft.rfft2(torch.stack(noise)).angle())
    values = torch.fft.irfft2(torch.fft.rfft2((images - grey) * free).abs() * phases, s=size)
    values = (grey + values * (size.numel() / count.clamp(min=1)).sqrt()).clamp(0, 1)
    enough = count >= HEALTHY * lung.flatten(1).sum(1).view(-1, 1, 1, 1).clamp(min=1)
    return torch.where(enough, values, grey)


def withstand(run: Run, images: Dataset, *, epsilon: float, steps: int, queries: int) -> pd.DataFrame:
    """Return a row for each image: right (1 or 0) on clean images, under PGD-20 and in the worst case."""
    parts = []
    for rows in lesion_effect.slices(np.arange(len(images)), BATCH):
        pixels, labels = to_pixels(torch.from_numpy(images.batch(rows))), torch.from_numpy(images.labels[rows])
        attacked = attacks.pgd(run.model, pixels, labels, epsilon=epsilon, steps=20)
        effort: dict[str, Any] = {"steps": steps, "queries": queries, "start": attacked}
        report = attacks.worst_case_report(run.model, pixels, labels, epsilon=epsilon, **effort)
        with torch.no_grad():
            right = [run.model(each).argmax(1) == labels for each in (pixels, attacked)]
        right += [torch.tensor([name is None for name in report.broken_by])]
        parts.append(torch.stack(right, 1).numpy().astype(float))
    table = pd.DataFrame(np.concatenate(parts), columns=["clean", "pgd", "worst"])
    return table.assign(sample_id=images.sample_ids, group=images.groups, label=images.labels)


def measure_effects(run: Run, images: Dataset, *, epsilon: float) -> tuple[pd.DataFrame, list[LesionDocument]]:
    """Return the effect of each image by fill, against healthy lung, and the summary for each fill and control."""
    FILLS["phase"] = fill_phase
    lesion_effect.FILLS = ("grey", "mirror", "surroundings", *UNSEEN)  # type: ignore[assignment]
    table = lesion_effect.lesion_effects(run, images, batch_size=BATCH, sample=len(images), epsilon=epsilon)
    lung = table[(table["control"] == "lung") & (table["epsilon"] == 0)].copy()
    lung["least"] = np.minimum(lung["effect"], lung["fall"])
    wide = lung.pivot_table(index="sample_id", columns="fill", values="least").add_prefix("effect_")
    return wide.reset_index(), lesion_effect.summarise_effects(table)


def describe_effects(lesions: list[LesionDocument]) -> str:
    """Return the least lesion effect and that of each fill as text."""
    least = RunDocument(lesions=lesions).lesion_effect
    assert least is not None
    low, high = least.least.ci or (np.nan, np.nan)
    text = f"least lesion effect {least.least.value:.3f} [{low:.3f}, {high:.3f}] on {least.images} images"
    text += f" (fill {least.fill}, control {least.control}, answers that flip {100 * (least.flipped.value or 0):.1f}"
    text += f", of the control {100 * (least.flipped_control or 0):.1f})"
    for control in ("lung", lesion_effect.HEALTHY_IMAGE):
        for epsilon in sorted({row.epsilon or 0.0 for row in lesions}):
            rows = [row for row in lesions if row.control == control and (row.epsilon or 0.0) == epsilon]
            each = ", ".join(f"{row.fill} {row.least.value:.3f}" for row in rows)
            under = f" under PGD-{lesion_effect.PGD_STEPS} at {epsilon:g}" if epsilon else ""
            text += f"; against {control}{under}: {each}" if rows else ""
    return text


def describe_changes(before: pd.DataFrame, after: pd.DataFrame) -> str:
    """Return the paired differences of two runs as text: accuracies in points, and effects by fill."""
    both = before.merge(after, on="sample_id", suffixes=("_before", "_after"), validate="1:1")
    parts = []
    for name in ("clean", "pgd", "worst", *(f"effect_{fill}" for fill in ("grey", *UNSEEN))):
        change = paired(both[f"{name}_before"], both[f"{name}_after"], both["group_before"])
        scale, places = (1, 3) if name.startswith("effect") else (100, 1)
        figures = [f"{scale * value:+.{places}f}" for value in (change.difference, *change.difference_ci)]
        parts.append(f"{name.replace('_', ' by ')} {figures[0]} [{figures[1]}, {figures[2]}]")
    return ", ".join(parts)


def main() -> None:
    """Measure the run and write its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trial", required=True)
    parser.add_argument("--what", required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--split", default="Val")
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--queries", type=int, default=300, help="of square, in the worst case")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    run = load_run(options.run, on="cpu")
    images = load_dataset(options.data, options.split, run.size, classes=run.classes)
    effects, lesions = measure_effects(run, images, epsilon=options.epsilon)
    print(describe_effects(lesions), flush=True)
    effort = {"steps": options.steps, "queries": options.queries}
    figures = withstand(run, images, epsilon=options.epsilon, **effort).merge(effects, "left", "sample_id")
    figures.to_csv(options.run / IMAGES_FILE, index=False)
    means, classes = figures[["clean", "pgd", "worst"]].mean(), figures.groupby("label")["worst"].mean()
    what = f"{options.what}; PGD-20 {100 * means['pgd']:.1f}; worst case by class "
    what += ", ".join(f"{name} {100 * classes[k]:.1f}" for k, name in enumerate(run.classes))
    what += f"; {describe_effects(lesions)}"
    if options.against:
        change = describe_changes(pd.read_csv(options.against / IMAGES_FILE), figures)
        what += f"; less {options.against.name}: {change}"
    row: dict[str, object] = {"study": "lesion", "trial": options.trial, "what": what}
    row |= {"seeds": run.recipe.seed, "n": len(figures)}
    row["recipe"] = run.recipe.model_dump_json(exclude_defaults=True, exclude={"seed"})
    row |= {"attack": f"worst-case-{options.steps}/{options.queries}", "epsilon": options.epsilon}
    row["command"] = typed_command()
    groups = figures["group"].to_numpy()
    row |= percent(figures["clean"].to_numpy(), groups, "clean")
    row |= percent(figures["worst"].to_numpy(), groups, "attacked")
    append_trial(options.table, row)
    print(pd.Series(row).to_string(), what, sep="\n", flush=True)


if __name__ == "__main__":
    main()
