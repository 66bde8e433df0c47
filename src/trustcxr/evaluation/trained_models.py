"""Find trained models by name, such as `covid-robust`: their weights come with the package."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.errors import UserError, suggest_nearest, unknown
from trustcxr.storage import layout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trustcxr.storage.schemas import ZooEntry

ZOO = Path(__file__).parents[1] / "zoo"
IMAGES = 5  # synthetic images whose logits are checked
TOLERANCE = 1e-3  # of a logit, relative to the largest: other processors add in another order
RESULTS = Path("trustcxr-out")  # the package's folder may be read-only


@cache
def names() -> tuple[str, ...]:
    """Return the names of the trained models."""
    return tuple(sorted(path.stem for path in ZOO.glob("*.json")))


def is_name(run: str | Path) -> bool:
    """Return whether this is the name of a trained model, and no folder of this name is here."""
    return str(run) in names() and not Path(run).exists()


def resolve(run: str | Path) -> Path:
    """Return the folder of a trained model if `run` is its name, else `run` as a path, as `check_name`."""
    check_name(run)
    return fetch(str(run)) if is_name(run) else Path(run)


def check_name(run: str | Path) -> None:
    """Raise UserError, with the nearest names, if this is neither a path nor a name, but close to a name."""
    path = Path(run)
    if path.exists() or path.suffix or ":" in str(run) or is_name(run):
        return
    if near := suggest_nearest(run, names()):
        raise UserError(f"{run}: no such run folder, and no trained model: {near}valid: {', '.join(names())}")


def fetch(name: str) -> Path:
    """Return the folder of a trained model; UserError if its weights are missing."""
    folder = ZOO / name
    if not (folder / layout.WEIGHTS_FILE).is_file():
        raise UserError(f"{name}: its weights are missing from {folder}. Install trustcxr again")
    return folder


def entry(name: str) -> "ZooEntry":
    """Return the description of a trained model; UserError, with the nearest name, for an unknown one."""
    from trustcxr.storage.schemas import ZooEntry, read_schema

    if name not in names():
        raise unknown("trained model", name, names())
    return read_schema(ZooEntry, ZOO / f"{name}.json")


def name_of(folder: Path) -> str:
    """Return the name of the trained model whose run is in this folder; empty for any other run."""
    folder = folder.absolute()
    return folder.name if folder.parent == ZOO else ""


def results_folder(run: Path) -> Path:
    """Return the folder for what commands measure of a run: its own, or `trustcxr-out/<name>` for a trained model."""
    name = name_of(run)
    return RESULTS / name if name else run


def synthetic_images(size: int) -> "Tensor":
    """Return five smooth images (5, 1, size, size) in [0, 1], from a formula."""
    import torch

    axis = torch.linspace(0, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    waves = [torch.sin(6.28 * (k * x + y)) * torch.cos(6.28 * (x - k * y / 2)) for k in range(1, IMAGES + 1)]
    return (0.5 + 0.4 * torch.stack(waves)[:, None]).float()


def check_logits(name: str, model: "nn.Module", size: int) -> None:
    """Raise UserError if a trained model answers the synthetic images otherwise than its entry says."""
    import torch

    expected = torch.tensor(entry(name).expected_logits)
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model(synthetic_images(size).to(device)).float().cpu()
    largest = float((logits - expected).abs().max()) if logits.shape == expected.shape else float("inf")
    if not largest <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(f"{name}: its weights answer otherwise than the zoo expects. Install trustcxr again")
