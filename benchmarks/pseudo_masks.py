"""Try masks of a segmenter: train a small U-Net on the masks of one data set, and draw those of another.

python -m benchmarks.pseudo_masks --data covidqu-midi --more covidqu-more --out FOLDER [--epochs 20]

A trial, no part of the package. FOLDER becomes a copy of `--more` with lung masks, and with infection masks of class
COVID-19; name its manifest.csv as data.add of a recipe. The U-Net sees 64 pixels and learns on the split
Train. The Dice scores that it prints are of the split Val, of images with an infection mask.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.storage import atomic

SIZE, WIDTHS, KINDS = 64, (16, 32, 64, 128), ("lung", "infection")


def convolve(channels: int, width: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for before in (channels, width):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) from images (B, 1, H, W) to a logit of each kind of mask (B, 2, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(convolve(*pair) for pair in zip((1, *WIDTHS), WIDTHS, strict=False))
        pairs = list(zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.up = nn.ModuleList(convolve(deep + shallow, shallow) for deep, shallow in pairs)
        self.head = nn.Conv2d(WIDTHS[0], len(KINDS), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        maps: list[Tensor] = []
        for block in self.down:
            maps.append(block(F.max_pool2d(maps[-1], 2) if maps else images - 0.5))
        values = maps.pop()
        for block in self.up:
            values = block(torch.cat([F.interpolate(values, scale_factor=2), maps.pop()], 1))
        return self.head(values)


def load(data: str, split: str) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 64, 64) of a split and their masks (N, 2, 64, 64), of those with an infection or healthy."""
    images = load_dataset(data, split, SIZE)
    masks = np.stack([images.masks(kind) for kind in KINDS], 1)
    normal = images.labels == list(images.classes).index("Normal")
    rows = np.flatnonzero(masks[:, 0].any((1, 2)) & (masks[:, 1].any((1, 2)) | normal))
    return to_pixels(torch.from_numpy(images.batch(rows))), torch.from_numpy(masks[rows]).float()


def train(pixels: Tensor, masks: Tensor, epochs: int) -> UNet:
    """Train on batches of 32, mirrored half of the time."""
    torch.manual_seed(0)
    net, steps = UNet(), epochs * (len(pixels) // 32)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(pixels), (32,))
        image, target = pixels[rows], masks[rows]
        if torch.rand(()) < 0.5:
            image, target = image.flip(-1), target.flip(-1)
        loss = F.binary_cross_entropy_with_logits(net(image), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(f"{step}/{steps} loss {loss.item():.3f}", flush=True)
    return net.eval()


def segment(net: UNet, pixels: Tensor) -> np.ndarray:
    """Return the masks (N, 2, H, W), bool."""
    with torch.no_grad():
        return torch.cat([net(part) > 0 for part in pixels.split(128)]).numpy()


def copy_file(file: Path, copy: Path) -> None:
    """Copy a file, and make its folder."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, copy)


def write(net: UNet, data: str, out: Path) -> None:
    """Write a copy of a data set with masks, and its manifest."""
    images = load_dataset(data, "Train", SIZE)
    table = pd.read_csv(Path(data) / "manifest.csv").set_index("path")
    masks = segment(net, to_pixels(torch.from_numpy(images.batch(range(len(images))))))
    rows = []
    for name, label, (lung, infection) in zip(images.sample_ids, images.labels, masks, strict=True):
        known, kind = table.loc[name], images.classes[label]
        copy_file(Path(data) / name, out / name)
        row = {"sample_id": name, "path": name, "class": kind, "split": "Train"}
        row |= {"source": known["source"], "patient": known["patient"]}
        for word, mask in (("lung", lung), ("infection", infection & lung)):
            if mask.any() and (word == "lung" or kind == "COVID-19"):
                row[f"{word}_mask"] = f"{word}_masks/{name}"
                file = out / row[f"{word}_mask"]
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(file)
        rows.append(row)
    atomic.write_table(out / "manifest.csv", pd.DataFrame(rows))


def main() -> None:
    """Train the U-Net and draw the masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--more"):
        parser.add_argument(name, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    net = train(*load(options.data, "Train"), options.epochs)
    pixels, masks = load(options.data, "Val")
    drawn, right = segment(net, pixels), masks.numpy() > 0
    ill = right[:, 1].any((1, 2))
    for number, kind in enumerate(KINDS):
        both, parts = (
            (drawn & right)[ill, number].sum((1, 2)),
            drawn[ill, number].sum((1, 2)) + right[ill, number].sum((1, 2)),
        )
        print(f"Dice of {kind}: {np.mean(2 * both / parts):.3f} on {ill.sum()} images")
    write(net, options.more, options.out)


if __name__ == "__main__":
    main()
