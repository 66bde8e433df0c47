"""Fit and measure the check that an image is an upright frontal chest radiograph.

`python -m benchmarks.chest_check fit` fits it on training images of the packs, sets its thresholds on validation
images, and writes `src/trustcxr/data/images/chest_network.safetensors`. `measure` prints how many images of other
hospitals pass, and how many others do not (studies/image-checks). Both read packs from TRUSTCXR_DATA.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn import functional

from trustcxr.data.images import chest_network, plausibility
from trustcxr.data.images.chest_network import ChestNetwork, fit_components, flatten, normalise, shrink
from trustcxr.data.images.read import read_image
from trustcxr.data.phantom.render_image import CLASSES, render
from trustcxr.statistics import wilson
from trustcxr.storage.atomic import atomic_write

EPOCHS, BATCH, RATE, SEED = 36, 128, 4e-3, 0
PHANTOMS = 500  # synthetic radiographs, which demonstrations use; each is seen twice an epoch
COMPONENTS = 64  # of the density
PASSED = {"network": 0.985, "density": 0.99}  # shares of validation images that each part lets pass
SHOWN = 200  # images of other hospitals


def load_thumbnails(pack: str, split: str | None = None) -> np.ndarray:
    """Load thumbnails (N, 64, 64) of the images that a pack's manifest lists."""
    folder = Path(os.environ["TRUSTCXR_DATA"], pack)
    table = pd.read_csv(folder / "manifest.csv")
    chosen = table if split is None else table[table["split"] == split]
    return np.stack([plausibility.make_thumbnail(read_image(folder / path)) for path in chosen["path"]])


def draw_phantoms(count: int, first: int = 1_000_000) -> np.ndarray:
    """Render thumbnails of synthetic radiographs."""
    return np.stack([render(CLASSES[k % 3], first + k, plausibility.SIDE).image for k in range(count)])


def fit() -> None:
    """Fit network, density and thresholds, and write them."""
    torch.manual_seed(SEED)
    phantoms = draw_phantoms(PHANTOMS)
    packs = [load_thumbnails("covidqu-midi", "Train"), load_thumbnails("covidqu-more")]
    train = np.concatenate([*packs, phantoms, phantoms])
    val = load_thumbnails("covidqu-midi", "Val")
    images = shrink(train)
    network, density = fit_network(images), fit_components(flatten(normalise(images)).double(), COMPONENTS)
    tensors = {name: value.half() for name, value in vars(density).items()}
    tensors |= {name: value.half() for name, value in network.state_dict().items()}
    about = {
        "script": "benchmarks/chest_check.py",
        "train": f"{sum(map(len, packs))} images: covidqu-midi Train, covidqu-more; {PHANTOMS} phantoms",
        "validation": f"{len(val)} images: covidqu-midi Val",
        "passed": json.dumps(PASSED),
        "seed": str(SEED),
        "epochs": str(EPOCHS),
    }
    write(tensors | {"limits": torch.tensor([-math.inf, math.inf])}, about)
    scores, distances = chest_network.measure(val)
    limits = [
        torch.quantile(scores[:, 0], 1 - PASSED["network"]),
        torch.quantile(distances, PASSED["density"]),
    ]
    write(tensors | {"limits": torch.stack(limits)}, about)
    print(f"limits: {limits[0]:.3f} (log probability), {limits[1]:.3f} (log distance)")


def write(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write the file of the package, and forget what was loaded of it."""
    with atomic_write(chest_network.FILE) as temporary:
        temporary.write_bytes(save_tensors({name: value.contiguous() for name, value in tensors.items()}, about))
    chest_network.load_check.cache_clear()


def fit_network(train: Tensor) -> ChestNetwork:
    """Train the network on images, their turned, mirrored and inverted copies, and synthetic others."""
    network, random = ChestNetwork().train(), np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    steps = len(train) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    others = shrink(np.stack([*draw_others(random, 3000)]))
    for epoch in range(EPOCHS):
        total, order = 0.0, torch.randperm(len(train))
        for step in range(steps):
            images, kinds = make_batch(train[order[step * BATCH : (step + 1) * BATCH]], others)
            loss = functional.cross_entropy(network(normalise(images)[:, None]), kinds, label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total:.3f}", flush=True)
    return network.eval()


def make_batch(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return images of all kinds, with the indices of their kinds."""
    images = augment(images)
    rows = torch.randperm(len(images))
    turned, inverted, cropped = rows[:40], rows[40:60], rows[60:75]
    other = augment(others[torch.randint(len(others), (30,))])
    parts = {
        0: images,
        1: images.flip(2),
        2: torch.cat([turn(images[turned[k::6]], k) for k in range(6)]),
        3: 255 - (images[inverted] if torch.rand(()) < 0.5 else images[inverted].flip(2)),
        4: torch.cat([other, crop(images[cropped])]),
    }
    kinds = torch.cat([torch.full((len(part),), kind) for kind, part in parts.items()])
    return torch.cat(list(parts.values())), kinds


def turn(images: Tensor, way: int) -> Tensor:
    """Turn images in one of the six ways that are neither upright nor mirrored."""
    if way < 3:
        return images.rot90(way + 1, (1, 2))
    return images.flip(2).rot90(way - 2, (1, 2))


def crop(images: Tensor) -> Tensor:
    """Enlarge a small part of each image."""
    count = len(images)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 0.15 + 0.2 * torch.rand(count)
    matrix[:, :, 2] = 1.2 * torch.rand(count, 2) - 0.6
    return sample(images, matrix)


def augment(images: Tensor) -> Tensor:
    """Shift, scale, rotate, and change contrast, gamma and noise."""
    count = len(images)
    angle, scale = 0.15 * torch.randn(count).clamp(-2, 2), 1 + 0.1 * torch.randn(count, 2).clamp(-2, 2)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = scale[:, 0] * angle.cos(), -angle.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = angle.sin(), scale[:, 1] * angle.cos()
    matrix[:, :, 2] = 0.08 * torch.randn(count, 2)
    levels = sample(images, matrix) / 255
    levels = levels ** torch.exp(0.3 * torch.randn(count, 1, 1))
    return 255 * (levels + 0.03 * torch.rand(count, 1, 1) * torch.randn_like(levels)).clamp(0, 1)


def sample(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample images by affine matrices; beyond the image it is black, or as its border."""
    grid = functional.affine_grid(matrix, [len(images), 1, *images.shape[1:]], align_corners=False)
    border = "zeros" if torch.rand(()) < 0.5 else "border"
    return functional.grid_sample(images[:, None], grid, padding_mode=border, align_corners=False)[:, 0]


def draw_others(random: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Yield synthetic images (64, 64) that are no chest: hands, pages, bodies in section, shapes and noise."""
    draw = (draw_hand, draw_page, draw_section, draw_shapes, draw_noise)
    for k in range(count):
        picture = draw[k % len(draw)](random)
        yield plausibility.make_thumbnail(np.asarray(picture.convert("L")))


def draw_hand(random: np.random.Generator) -> Image.Image:
    """Draw a hand as a radiograph shows it: five fingers of bones in soft tissue."""
    picture = Image.new("L", (256, 256), int(random.integers(0, 40)))
    pen = ImageDraw.Draw(picture)
    grey, bone = int(random.integers(60, 120)), int(random.integers(140, 250))
    x, y, turn = *random.uniform(100, 156, 2), random.uniform(-0.5, 0.5) + math.pi * random.integers(0, 2)
    for colour, width in ((grey, 26), (bone, 9)):
        for finger, spread in enumerate((-0.9, -0.35, -0.05, 0.25, 0.55)):
            angle, length = spread + turn, (70, 105, 115, 108, 85)[finger] * random.uniform(0.9, 1.1)
            end = (x + length * math.sin(angle), y - length * math.cos(angle))
            pen.line((x, y, *end), fill=colour, width=width)
            pen.ellipse((end[0] - width / 2, end[1] - width / 2, end[0] + width / 2, end[1] + width / 2), fill=colour)
        wrist = (x - 110 * math.sin(turn), y + 110 * math.cos(turn))
        pen.line((x, y, *wrist), fill=colour, width=2 * width)
        pen.ellipse((x - 1.4 * width, y - 1.4 * width, x + 1.4 * width, y + 1.4 * width), fill=colour)
    return picture


def draw_page(random: np.random.Generator) -> Image.Image:
    """Draw a page of lines of random letters."""
    dark = bool(random.integers(0, 4) == 0)
    picture = Image.new("L", (256, 320), 20 if dark else 245)
    pen, size = ImageDraw.Draw(picture), int(random.integers(8, 26))
    font = ImageFont.load_default(size)
    for y in range(int(random.integers(8, 60)), int(random.integers(160, 312)), int(1.4 * size)):
        letters = "".join(chr(97 + k) if k < 26 else " " for k in random.integers(0, 31, random.integers(5, 60)))
        pen.text((float(random.integers(4, 30)), y), letters, fill=230 if dark else 20, font=font)
    return picture


def draw_section(random: np.random.Generator) -> Image.Image:
    """Draw a body in section: an ellipse of tissue with two dark lungs and a spine."""
    picture = Image.new("L", (256, 256), 0)
    pen = ImageDraw.Draw(picture)
    wide, high = random.uniform(95, 125), random.uniform(70, 105)
    tissue = int(random.integers(110, 200))
    pen.ellipse((128 - wide, 128 - high, 128 + wide, 128 + high), fill=tissue)
    for side in (-1, 1):
        x, half = 128 + side * random.uniform(0.4, 0.5) * wide, 0.36 * wide
        tall = random.uniform(0.4, 0.7) * high
        pen.ellipse((x - half, 122 - tall, x + half, 122 + tall), fill=int(random.integers(0, 60)))
    pen.ellipse((110, 128 + 0.4 * high, 146, 128 + 0.8 * high), fill=int(random.integers(200, 255)))
    return picture


def draw_shapes(random: np.random.Generator) -> Image.Image:
    """Draw ellipses and boxes on a gradient."""
    slope = np.add.outer(*(np.linspace(0, end, 256) for end in random.uniform(-120, 120, 2))) + 128
    picture = Image.fromarray(slope.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(random.integers(0, 12)):
        left, top, width, height = random.uniform((-40, -40, 10, 10), (220, 220, 160, 160))
        shape = pen.ellipse if random.integers(0, 2) else pen.rectangle
        shape((left, top, left + width, top + height), fill=int(random.integers(0, 256)))
    return picture


def draw_noise(random: np.random.Generator) -> Image.Image:
    """Draw noise of a random power spectrum, as in photographs and textures."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128))) + 1 / 128
    spectrum = np.fft.fft2(random.normal(size=(128, 128))) / frequency ** random.uniform(0, 2.2)
    levels = np.fft.ifft2(spectrum).real
    levels = 128 + random.uniform(20, 70) * (levels - levels.mean()) / levels.std()
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def measure() -> None:
    """Print how many radiographs pass, and how many of the others do not, as Markdown."""
    print("# The check that an image is an upright frontal chest radiograph\n")
    print("Printed by `python -m benchmarks.chest_check measure`. In brackets 95 % intervals (Wilson).")
    print("The check was fitted on training images. The Val images set its limits:")
    print(f"{PASSED['network']:.1%} and {PASSED['density']:.1%} of them pass its two parts.")
    print(f"These shares and the {COMPONENTS} components were chosen with a look at `ct-mini` and `external-cxr`.")
    print("So their figures may be a little too high. Research software. Not for diagnosis.\n")
    print("| images | share | count |\n| --- | --- | --- |")
    external = load_thumbnails("external-cxr")
    chosen = np.random.default_rng(SEED).permutation(len(external))[:SHOWN]
    val = load_thumbnails("covidqu-midi", "Val")
    print_share(f"{SHOWN} radiographs of external-cxr: answered", passes(external[chosen]))
    print_share("all radiographs of external-cxr: answered", passes(external))
    print_share("covidqu-midi, Val: answered", passes(val))
    print_share("phantoms: answered", passes(draw_phantoms(200, 2_000_000)))
    for name, images in (("covidqu-midi, Val", val), ("external-cxr", external)):
        for way, changed in change(images).items():
            print_share(f"{name}, {way}: refused", ~passes(changed))
    print_share("CT slices of ct-mini: refused", ~passes(load_thumbnails("ct-mini")))
    others = np.stack([*draw_others(np.random.default_rng(SEED + 1), 500)])
    print_share("synthetic hands, pages, sections, shapes, noise: refused", ~passes(others))


def change(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return images turned and inverted."""
    return {
        "mirrored": images[:, :, ::-1],
        "upside down": images[:, ::-1],
        "turned by 90 degrees": np.rot90(images, 1, (1, 2)),
        "inverted": 255 - images,
    }


def passes(thumbs: np.ndarray) -> np.ndarray:
    """Return True for each thumbnail that gets an answer."""
    return np.array([not doubts for doubts in plausibility.find_doubts(thumbs, [0.0] * len(thumbs))])


def print_share(text: str, right: np.ndarray) -> None:
    """Print a share with its 95 % interval, a row of the table."""
    low, high = wilson(float(right.mean()), len(right))
    print(f"| {text} | {right.mean():.1%} ({low:.1%} to {high:.1%}) | {int(right.sum())} of {len(right)} |")


if __name__ == "__main__":
    {"fit": fit, "measure": measure}[sys.argv[1]]()
