"""`study --dry-run`: the runs of a recipe, what is done, and what each will cost by what was measured here."""

from pathlib import Path

from trustcxr.data import remote
from trustcxr.data.layouts import read_manifest
from trustcxr.data.layouts.covidqu import PUBLISHED
from trustcxr.data.manifest import NO_SPLIT, SHARES
from trustcxr.errors import UserError
from trustcxr.recipes.study import StudyRecipe, grows, refuse_fewer_seeds, untracked
from trustcxr.results import files, folders
from trustcxr.results.disk import as_typed
from trustcxr.results.documents import StudyPlan
from trustcxr.study import planned, standing
from trustcxr.study.choice import left_out
from trustcxr.study.costs import COST_FILE


def dry_run(
    recipe: StudyRecipe,
    data: Path | None,
    out: Path | None,
    *,
    devices: int = 1,
    measured: bool = True,
    again: bool = False,
) -> StudyPlan:
    """The plan of a study; nothing is trained, decoded or fetched.

    Without `data` images are counted as COVID-QU-Ex was published. What is done in `out` already is seen;
    what was measured is kept in `out` for `status`. `devices`: cards that share
    each training; UserError where they cannot, and for names that nobody knows. `measured`: time each network now, some
    seconds each, but for those that were timed on this machine before, unless `again`.
    """
    begun = out if out is not None and (out / folders.STUDY_FILE).is_file() else None
    if begun is not None:
        _refuse_another(begun, recipe)
    from trustcxr.study import preflight

    preflight.names(recipe, begun)
    if devices != 1:
        preflight.cards(recipe, devices)
    costs = None
    if measured:
        from trustcxr.study import measuring

        counts, note = counted(recipe, data)
        costs = measuring.measure(recipe, counts, again=again)
        costs.notes.insert(0, note)
        if out is not None:
            files.write_json(out / COST_FILE, costs)
    return standing.plan(recipe, begun or out, costs)


def _refuse_another(begun: Path, recipe: StudyRecipe) -> None:
    before = planned.recipe_of(begun)
    refuse_fewer_seeds(before, recipe, begun)
    if untracked(before) != untracked(recipe) and not (grows(before, recipe) or left_out(begun, before, recipe)):
        raise UserError(
            f"{begun}: holds a study of another recipe; choose another --out, or see trustcxr status {as_typed(begun)}"
        )


def counted(recipe: StudyRecipe, data: Path | None) -> tuple[dict[str, int], str]:
    """Images of each role and how many have masks, and where that is known from; no image is read."""
    if data is None:
        return _published()
    if remote.is_address(data):
        where = remote.absolute(data)
        raise UserError(f"{where}: a dry run brings no films here; leave --data out, or name a folder of this machine")
    manifest = read_manifest(data, **recipe.data.listing())
    if recipe.data.labels:
        manifest = manifest.with_labels(recipe.data.labels)
    names = recipe.data.splits
    if manifest.splits == (NO_SPLIT,) and {names.train, names.val, names.test} <= set(SHARES):
        manifest = manifest.with_splits(seed=0)
    table, found = manifest.table, dict[str, int]()
    for role, split in (("train", names.train), ("val", names.val), ("test", names.test)):
        rows = table[table["split"] == split]
        if rows.empty:
            raise manifest.no_split(split)
        found[role] = len(rows)
        if role != "train":
            kinds = [rows[f"{kind}_mask"].notna() for kind in ("infection", "lung")]
            with_masks = next((int(has.sum()) for has in kinds if has.any()), 0)
            found["annotated" if role == "test" else "annotated_val"] = with_masks
    return found, f"images counted in {manifest.root.name}"


def _published() -> tuple[dict[str, int], str]:
    totals = [sum(part.values()) for part in PUBLISHED.values()]
    images, annotated = max(totals), min(totals)
    roles = {"train": "Train", "val": "Val", "test": "Test"}
    found = {role: round(images * SHARES[split]) for role, split in roles.items()}
    found |= {"annotated": round(annotated * SHARES["Test"]), "annotated_val": round(annotated * SHARES["Val"])}
    return found, f"without --data images are counted as COVID-QU-Ex was published: {images:,}, divided as it is"
