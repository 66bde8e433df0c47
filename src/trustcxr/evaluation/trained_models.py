"""Find trained models by name, such as `covid-robust`: their weights come with the package, or from an address."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.errors import UserError, suggest_nearest
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
    """Return the folder of a trained model; weights that the package lacks are downloaded once and checked.

    Raises UserError if the weights are missing, cannot be downloaded, or have another size or SHA-256.
    """
    folder = ZOO / name
    if (folder / layout.WEIGHTS_FILE).is_file():
        return folder
    content = json.loads((ZOO / f"{name}.json").read_text(encoding="utf-8"))  # without pydantic, which is slow to load
    if not content.get("address"):
        raise UserError(f"{name}: its weights are missing from {folder}. Install trustcxr again")
    return _download(name, folder, content["address"], int(content["bytes"]), content["sha256"])


def entry(name: str) -> "ZooEntry":
    """Return the description of a trained model; UserError, with the nearest name, for an unknown one."""
    from trustcxr.errors import unknown
    from trustcxr.storage.schemas import ZooEntry, read_schema

    if name not in names():
        raise unknown("trained model", name, names())
    return read_schema(ZooEntry, ZOO / f"{name}.json")


def name_of(folder: Path) -> str:
    """Return the name of the trained model whose run is in this folder; empty for any other run."""
    folder = folder.absolute()
    if folder.parent == ZOO:
        return folder.name
    return folder.name.rpartition("-")[0] if folder.parent == _cache() else ""


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


def _cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("trustcxr")) / "zoo"


def _download(name: str, folder: Path, address: str, size: int, sha256: str) -> Path:
    """Download weights into the cache, under the model's name and hash, and return the folder of the run."""
    from urllib.request import urlopen

    from trustcxr.storage import atomic
    from trustcxr.storage.os_errors import writing

    target = _cache() / f"{name}-{sha256[:16]}"
    if (target / layout.WEIGHTS_FILE).is_file():
        return target
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as staging:
            staged = Path(shutil.copytree(folder, Path(staging) / "run"))
            try:
                with urlopen(address, timeout=60) as source:
                    content = source.read(size + 1)
            except Exception as problem:
                why = type(problem).__name__
                raise UserError(f"{name}: {address} cannot be downloaded ({why}). Check the network.") from None
            (staged / layout.WEIGHTS_FILE).write_bytes(content)
            if len(content) != size or atomic.checksum(staged / layout.WEIGHTS_FILE) != sha256:
                raise UserError(
                    f"{name}: {address} holds other weights than those of the zoo (expected {size} bytes, SHA-256 "
                    f"{sha256[:16]}...). Nothing was loaded"
                )
            staged.replace(target)
    return target
