"""A map of each of the 21 networks, on one sheet, for the eye: none blank, flipped or shifted.

    python benchmarks/findings/maps.py --out maps.png

Each network, its weights random, is made to answer by what sets an image with noise in one corner apart from an even
grey one; its HiResCAM must lie in that corner. Beside it its Grad-CAM of a synthetic film, as the network is. Printed:
the share of each map in the marked corner (its share of the area is 0.128), and how many maps are blank.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from trustcxr import explain
from trustcxr.data.phantom.film import render
from trustcxr.explain import known_cause
from trustcxr.models import factory, zoo

SIZE = 224
CORNERS = known_cause.corners(SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    film = torch.from_numpy(render("COVID-19", 1, SIZE).image).float().div(255)[None, None]
    across = 3  # networks in a row of the sheet
    down = -(-len(zoo.PAPER_MODELS) // across)
    columns = 1 + len(CORNERS)
    figure, axes = plt.subplots(down, across * columns, figsize=(1.1 * across * columns, 1.3 * down))
    for axis in axes.flat:
        axis.axis("off")
    blank = 0
    for number, name in enumerate(zoo.PAPER_MODELS):
        row, first = number // across, number % across * columns
        maps = {"film": as_it_is(name, film)} | {corner: in_corner(name, place) for corner, place in CORNERS.items()}
        for column, (title, saliency) in enumerate(maps.items()):
            axis = axes[row, first + column]
            axis.imshow(saliency.numpy(), cmap="viridis", vmin=0, vmax=1)
            axis.set_title(f"{name}\n{title}" if column == 0 else f"\n{title}", fontsize=6)
            blank += int(not saliency.any())
        shares = [float(maps[corner][place].sum() / maps[corner].sum()) for corner, place in CORNERS.items()]
        print(f"{name:18} share in the marked corner: {', '.join(f'{share:.2f}' for share in shares)}", flush=True)
    print(f"{blank} of {len(zoo.PAPER_MODELS) * columns} maps are blank")
    figure.tight_layout(pad=0.3)
    figure.savefig(options.out, dpi=150)


def as_it_is(name: str, film: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (H, W) of a film (1, 1, H, W) for the answer of the network with random weights."""
    torch.manual_seed(0)
    model = factory.build(name, classes=3).eval()
    with torch.no_grad():
        answer = model(film).argmax(1)
    return explain.grad_cam(model, film, answer)[0]


def in_corner(name: str, place: tuple[slice, slice]) -> torch.Tensor:
    """HiResCAM (H, W) of noise in one corner."""
    torch.manual_seed(0)
    flat, marked = known_cause.grey_but_for(SIZE, place)
    return explain.hires_cam(known_cause.CornerReader(factory.build(name, classes=2), marked, flat), marked, 0)[0]


if __name__ == "__main__":
    main()
