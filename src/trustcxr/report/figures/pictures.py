"""Draw pictures of images as PNGs: heatmaps with annotated outlines, smallest changes, and wrong answers."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.registry import GREY_LEVELS
from trustcxr.report import formatting
from trustcxr.report.figures import svg
from trustcxr.report.key_findings import group_by_model
from trustcxr.report.load import Run
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import AuditDocument

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

COLOUR_MAP = "inferno"  # perceptually uniform; black at 0, so that an image without evidence stays grey
STRENGTH = 0.5  # opacity of the heatmap, the same for every image
INFECTION, LUNG = "#00e5ff", "#ffd54a"
_SIDE = 288  # pixels of a panel, shown at about 180 for fine screens and print
_BUDGET = 2_900_000  # characters of PNG data in the page; further networks are left out and named
_MOST_PANELS = 54  # of one network; with many defences there are fewer images


@dataclass(frozen=True)
class Panel:
    """One PNG of the page with the lines under it."""

    source: str  # a data: address
    alt: str
    title: str
    lines: tuple[str, ...]
    new_row: bool = False  # starts a row of networks, under the first heatmap


def overlay(image: "np.ndarray", saliency: "np.ndarray") -> "np.ndarray":
    """Blend a heatmap into an image.

    image: (H, W) uint8; saliency: (H, W) float32 in [0, 1]. Returns (H, W, 3) float in [0, 1].
    """
    import matplotlib as mpl
    import numpy as np

    grey = np.repeat(image.astype(np.float32)[..., None] / 255, 3, axis=2)
    heat = mpl.colormaps[COLOUR_MAP](np.clip(np.nan_to_num(saliency), 0, 1))[..., :3]
    return (1 - STRENGTH) * grey + STRENGTH * heat


def colour_bar() -> str:
    """Return a CSS gradient of the colour map from 0 to 1."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    stops = [to_hex(mpl.colormaps[COLOUR_MAP](i / 10)) for i in range(11)]
    return f"linear-gradient(to right, {', '.join(stops)})"


def picture(
    image: "np.ndarray",
    *,
    saliency: "np.ndarray | None" = None,
    infection: "np.ndarray | None" = None,
    lung: "np.ndarray | None" = None,
    cells: tuple[int, int] | None = None,
) -> "Image.Image":
    """Return an image with optional heatmap and outlines as RGB, 288 x 288 pixels.

    image: (H, W) uint8; saliency: (H, W) in [0, 1]; infection, lung: (H, W) 0/1; `cells`: rows and columns
    of a coarse heatmap, whose borders are drawn as dotted lines.
    """
    import numpy as np
    from PIL import Image

    shown = image if saliency is None else np.rint(overlay(image, saliency) * 255).astype(np.uint8)
    drawn = Image.fromarray(shown).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    for mask, colour in ((lung, LUNG), (infection, INFECTION)):
        if mask is not None and mask.shape == image.shape and mask.any():
            _outline(drawn, mask, colour)
    if cells:
        dots = np.zeros((_SIDE, _SIDE), np.uint8)
        for lines, count in zip((dots, dots.T), cells, strict=True):
            lines[[round(border * _SIDE / count) for border in range(1, count)], ::4] = 204
        drawn.paste("white", mask=Image.fromarray(dots))
    return drawn


def _outline(drawn: "Image.Image", mask: "np.ndarray", colour: str) -> None:
    """Draw the border of a mask over a dark line, at twice the size so that it is smooth."""
    import numpy as np
    from PIL import Image
    from scipy.ndimage import binary_dilation, binary_erosion

    large = Image.fromarray((mask > 0).astype(np.uint8) * 255).resize((2 * _SIDE,) * 2, Image.Resampling.BILINEAR)
    inside = np.pad(np.asarray(large) > 127, 4)  # closes a mask at the border
    for reach, shade, opacity in ((4, "black", 0.6), (2, colour, 1.0)):
        grown, shrunk = binary_dilation(inside, iterations=reach), binary_erosion(inside, None, reach, border_value=1)
        ring = (255 * opacity * (grown & ~shrunk)[4:-4, 4:-4]).astype(np.uint8)
        drawn.paste(shade, mask=Image.fromarray(ring).resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _grey_address(image: "np.ndarray") -> str:
    """Return a grey image, uint8 (H, W), as a PNG in a data: address."""
    from PIL import Image

    return _address(Image.fromarray(image))


def _address(image: "Image.Image", *, step: int = 1) -> str:
    """Return a PNG in a data: address. With `step` 4 each colour is rounded to a multiple of 4, at 60 % of the size."""
    buffer = io.BytesIO()
    shown = image if step == 1 else image.point(lambda value: min(round(value / step) * step, 255))
    shown.save(buffer, "PNG", compress_level=6)  # 7: 3 % smaller, in 1.6 times the time
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _text(arrays: "dict[str, np.ndarray]", name: str, index: int) -> str:
    return str(arrays[name][index]) if name in arrays and index < len(arrays[name]) else formatting.DASH


def _slice(arrays: "dict[str, np.ndarray]", name: str, index: int) -> Any:
    return arrays[name][index] if name in arrays and index < len(arrays[name]) else None


def _image_panel(arrays: "dict[str, np.ndarray]", index: int, number: int) -> Panel:
    name, share = _text(arrays, "class_name", index), _chance(_slice(arrays, "infection", index))
    lines = (f"true class: {name}", f"infection: {formatting.percent(share)} of the image")
    alt = f"Image {number}, true class {name}, with the outlines of infection and lungs"
    return Panel(_address(_image(arrays, index)), alt, "Image", lines)


def _heatmap_panel(run: Run, arrays: "dict[str, np.ndarray]", index: int, number: int) -> Panel:
    cells, energy = _cells(run, _text(arrays, "method", index)), _slice(arrays, "infection_energy", index)
    predicted, truth = _text(arrays, "predicted", index), _text(arrays, "class_name", index)
    right = "" if formatting.DASH in (predicted, truth) else " (right)" if predicted == truth else " (wrong)"
    lines = [
        f"predicted {predicted}{right}",
        f"infection energy {formatting.decimal(energy)}",
        f"chance {formatting.decimal(_chance(_slice(arrays, 'infection', index)))}",
    ]
    for name in ("infection_iou_area", "infection_auroc"):
        if name in arrays:
            lines.append(f"{formatting.measure(name)} {formatting.decimal(_slice(arrays, name, index))}")
    if cells:
        lines.append(f"{cells[0]} × {cells[1]} cells (dotted), interpolated")
    if not arrays["saliency"][index].any():
        lines.append("blank map")
    alt = f"Heatmap of {run.label} over image {number}; predicted {predicted}"
    return Panel(_address(_over_image(run, arrays, index), step=4), alt, run.label, tuple(lines))


def _cells(run: Run, method: str) -> tuple[int, int] | None:
    """Return rows and columns of a coarse map; None if it is as fine as the image or unknown."""
    document = run.main_saliency if method == formatting.DASH else run.metrics.saliency.get(method)
    sides = document.cells.split(" x ") if document else []
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 and all(map(str.isdigit, sides)) else None


def _chance(infection: "np.ndarray | None") -> float | None:
    return None if infection is None else float((infection > 0).mean())


def build_gallery(runs: Sequence[Run], *, most: int = 12) -> dict[str, Any] | None:
    """Return the first `most` example images with the heatmaps of the runs; None if no run has any.

    Networks come in the order given, each with all its defences, until the page's size budget is spent. `columns`:
    panels in a row, the image and all defences of one network or more; `infected`: with infection masks and not with
    lung masks alone; `extremes`: with the best and worst by a measure.
    """
    if not (groups := group_by_model([run for run in runs if run.panels is not None])):
        return None
    first = next(iter(groups.values()))[0]
    arrays = first.panels or {}
    largest = max(map(len, groups.values()))
    width = max(largest, 4 // largest * largest)
    total = max(1, min(len(arrays["image"]), most, _MOST_PANELS // (1 + largest)))
    columns = [[_image_panel(arrays, i, i + 1) for i in range(total)]]
    spent, used = _size(columns), 0
    shown: list[str] = []
    for model, group in groups.items():
        same = [run for run in group if _same_images(arrays, run.panels or {})]
        new = [[_heatmap_panel(run, run.panels or {}, i, i + 1) for i in range(total)] for run in same]
        if not new or (shown and spent + _size(new) > _BUDGET):
            break
        if used + len(new) > width:
            new[0] = [replace(panel, new_row=True) for panel in new[0]]
            used = 0
        columns += new
        spent, used = spent + _size(new), used + len(new)
        shown.append(model)
    reasons = [_why(arrays, i) for i in range(total)]
    names = [f"{i + 1}. {_text(arrays, 'sample_id', i)}{why}" for i, why in enumerate(reasons)]
    return {
        "examples": {name: [column[i] for column in columns] for i, name in enumerate(names)},
        "shown": shown,
        "left_out": [model for model in groups if model not in shown],
        "columns": 1 + width,
        "split": first.metrics.split or formatting.DASH,
        "infected": "infection" in arrays and bool(arrays["infection"].any()),
        "extremes": any("best" in why or "worst" in why for why in reasons),
    }


def _why(arrays: "dict[str, np.ndarray]", index: int) -> str:
    """Return why this image is shown: ` – best infection energy above chance`."""
    reasons = _text(arrays, "why", index)
    if reasons == formatting.DASH:
        return ""
    words = [" ".join(formatting.measure(part) for part in reason.split(" ")) for reason in reasons.split("; ")]
    return f" {formatting.DASH} {'; '.join(words)}"


def _size(columns: list[list[Panel]]) -> int:
    return sum(len(panel.source) for column in columns for panel in column)


def _same_images(one: "dict[str, np.ndarray]", other: "dict[str, np.ndarray]") -> bool:
    import numpy as np

    return one["image"].shape == other.get("image", np.empty(0)).shape and bool((one["image"] == other["image"]).all())


def draw_sheet(runs: Sequence[Run], *, columns: int, most: int = 4) -> svg.Drawing | None:
    """Draw a row per image, in `columns` with the heatmaps of the first runs, for a paper; None without any."""
    groups = group_by_model([run for run in runs if run.panels is not None])
    every = [run for group in groups.values() for run in group]
    if not every:
        return None
    arrays = every[0].panels or {}
    shown = [run for run in every if _same_images(arrays, run.panels or {})][: columns - 1]
    count = min(most, len(arrays["image"]))

    def plot(figure: "svg.Figure") -> None:
        grid = figure.subplots(count, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row in range(count):
            grid[row, 0].imshow(_image(arrays, row))
            for column, run in enumerate(shown, start=1):
                grid[row, column].imshow(_over_image(run, run.panels or {}, row))
        grid[0, 0].set_title("image", fontsize="small")
        for column, run in enumerate(shown, start=1):
            grid[0, column].set_title(run.label.replace(" · ", "\n"), fontsize="x-small")

    alt = f"{count} images with the outlines of infection and lungs, each with {len(shown)} heatmaps."
    wide = 760 if columns > 4 else 370  # two columns and one of a paper, at a font size of 11
    return svg.Drawing("heatmaps", wide, count * wide / columns + 40, plot, alt)


def _image(arrays: "dict[str, np.ndarray]", index: int) -> "Image.Image":
    infection, lung = _slice(arrays, "infection", index), _slice(arrays, "lung", index)
    return picture(arrays["image"][index], infection=infection, lung=lung)


def _over_image(run: Run, arrays: "dict[str, np.ndarray]", index: int) -> "Image.Image":
    cells = _cells(run, _text(arrays, "method", index))
    saliency, infection = arrays["saliency"][index], _slice(arrays, "infection", index)
    return picture(arrays["image"][index], saliency=saliency, infection=infection, cells=cells)


def draw_smallest_changes(document: AuditDocument, folder: Path | None) -> list[tuple[list[tuple[str, str]], str, str]]:
    """Return the smallest changes: address and description of each picture, size and answers; none without pictures."""
    import numpy as np

    pictures = _read_pictures(folder, layout.SMALLEST_CHANGES_FILE, "image", "changed")
    changes = []
    for row in (row for row in document.smallest_changes if row.sample_id in pictures):
        image, changed = pictures[row.sample_id]
        factor, size, answers = 1.0, "No change found", f"{row.label} stays"
        if row.epsilon:
            factor = 0.5 / row.epsilon
            size = f"{GREY_LEVELS * row.epsilon:.2g} of {GREY_LEVELS} grey levels"
            answers = f"{row.label} → {row.answer}"
        shown = {
            f"Image of {row.label}": image,
            f"The image changed: {row.answer}": changed,
            f"The change, {factor:.0f} times magnified": 0.5 + factor * (changed - image),
        }
        pixels = {text: np.rint(np.clip(one, 0, 1) * 255).astype(np.uint8) for text, one in shown.items()}
        changes.append(([(_grey_address(one), text) for text, one in pixels.items()], size, answers))
    return changes


def draw_failures(document: AuditDocument, folder: Path | None) -> list[Panel]:
    """Return the pictures of the most confident wrong answers; none if the audit's folder has no pictures of them."""
    pictures = _read_pictures(folder, layout.FAILURES_FILE, "image")
    panels = []
    for failure in (failure for failure in document.failures if failure.sample_id in pictures):
        lines = (f"label: {failure.label}", f"answer: {failure.answer}, {formatting.percent(failure.probability)}")
        address, alt = _grey_address(*pictures[failure.sample_id]), f"{failure.answer} for an image of {failure.label}"
        panels.append(Panel(address, alt, failure.finding or failure.sample_id, lines))
    return panels


def _read_pictures(folder: Path | None, file: str, *names: str) -> "dict[str, tuple[np.ndarray, ...]]":
    """Return the arrays of these names by image; empty if the folder has no such file."""
    import numpy as np

    path = None if folder is None else folder / file
    if path is None or not atomic.is_readable(path):
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        parts = zip(*(arrays[name] for name in names), strict=True)
        return dict(zip(arrays["sample_id"].tolist(), parts, strict=True))
