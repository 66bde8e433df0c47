"""What is wrong with the data of a study, looked for once, before anything is trained, and kept for its report."""

from pathlib import Path

from trustcxr.console import say
from trustcxr.recipes.study import StudyRecipe
from trustcxr.results import files, folders


def write(recipe: StudyRecipe, data: Path, folder: Path) -> Path:
    """data-check.json in the study's folder: what `trustcxr data check --json` prints; kept where it is whole."""
    from trustcxr.data.auditing.audit import audit

    path = folder / folders.DATA_CHECK_FILE
    if not files.reads(path):
        found = audit(data, **recipe.data.listing())
        files.write_json(path, found.to_dict())
        say(f"data check: {found.verdict}")
    return path
