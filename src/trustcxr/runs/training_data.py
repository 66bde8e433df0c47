"""Join the data sets that a run trains on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.console import log
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.dataset import JoinedDataset
from trustcxr.data.fingerprints import hash_training_data
from trustcxr.errors import UserError
from trustcxr.runs.test_data import report_skipped

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset
    from trustcxr.data.manifest import Manifest
    from trustcxr.recipes.run_recipe import AddedData, DataRecipe

_COMPARED: set[tuple[object, ...]] = set()  # data sets of this process without a shared image, for the runs of a study


def add_data(train: "Dataset", recipe: "DataRecipe") -> "Dataset | JoinedDataset":
    """Return the training images with those of the added data sets; `train` itself if there are none."""
    if not recipe.add:
        return train
    parts = [train]
    for added in recipe.add:
        manifest = read_added(added, train.root)
        if any(manifest.where.samefile(other.where) for other in parts):
            raise UserError(f"data.add: {added.path} is a data set of this training already. Leave it out")
        options: dict[str, Any] = {"labels": added.labels, "resize": recipe.resize, "classes": train.classes}
        part = load_dataset(manifest, added.split, recipe.size, every=True, **options)
        report_skipped(part)
        parts.append(part)
    joined = JoinedDataset(*parts, shares=recipe.shares)
    counts = (f"{len(p):,} of {p.root.name} ({s:.0%})" for p, s in zip(parts, recipe.shares, strict=True))
    joined.notes.append(f"training images, and their share of each class that is drawn: {', '.join(counts)}")
    log(joined.notes[-1])
    return joined


def read_added(added: "AddedData", root: Path) -> "Manifest":
    """Read the manifest of an added data set; `root`: the folder of the first one."""
    neighbour = root.parent / added.path
    manifest = read_manifest(neighbour if neighbour.exists() else added.path, **added.listing())
    if strange := sorted(set(added.leave_out) - set(manifest.table["sample_id"])):
        raise UserError(f"data.add: {added.path} has no sample {strange[0]}. Correct leave_out")
    return manifest.select(~manifest.table["sample_id"].isin(added.leave_out))


def check_added(joined: "Dataset | JoinedDataset", recipe: "DataRecipe", *, refit: bool) -> None:
    """Raise UserError if an image of one data set is in the validation or test images of another."""
    if not isinstance(joined, JoinedDataset):
        return
    first = (recipe.splits.train, recipe.splits.val) if refit else (recipe.splits.train,)
    used = (first, *((added.split,) for added in recipe.add))
    content = (*map(hash_training_data, joined.parts), used)
    if content not in _COMPARED:
        from trustcxr.data.checks.overlap import check_overlap

        check_overlap(joined.parts, used)
        _COMPARED.add(content)
