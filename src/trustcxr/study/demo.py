"""Run a whole study on synthetic X-rays, without data and network access."""

import shutil
from pathlib import Path

from trustcxr.console import log
from trustcxr.data.phantom import render_image, write_files
from trustcxr.recipes import study_recipe
from trustcxr.storage.locks import folder_lock
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.schemas import StudyDocument
from trustcxr.study import engines
from trustcxr.study.run_study import Study

IMAGES_PER_CLASS = {"Train": 160, "Val": 30, "Test": 40}
FULL = {"Train": 240, "Val": 40, "Test": 60}
CONSPICUITY = 2.0  # dense enough for two minutes of training to learn


def run(out: Path, jobs: int = 1, *, full: bool = False) -> StudyDocument:
    """Draw synthetic data into `out`/phantom and run the recipe `demo` with `jobs` parallel runs; return study.json.

    `full`: more images, larger networks and all severities, by the recipe `demo-full`.
    """
    counts, data, engine = FULL if full else IMAGES_PER_CLASS, out / "phantom", engines.get("local", jobs)
    with folder_lock(out):
        if not data.is_dir():
            classes = len(render_image.CLASSES)
            log(f"drawing {classes * sum(counts.values())} synthetic X-rays into {data}")
            partial = out / ".phantom-unfinished"
            shutil.rmtree(partial, ignore_errors=True)  # left by a demo that was cut off
            write_files.write(partial, counts, size=128, conspicuity=CONSPICUITY)
            partial.rename(data)
        return Study(study_recipe.load_study("demo-full" if full else "demo"), data, out, engine, check_data=True).run()


def list_next(document: StudyDocument, out: Path) -> list[str]:
    """Return commands that try the last run of the demo: predict, serve, audit."""
    run, data = out / "runs" / document.runs[-1].run, out / "phantom"
    image = next(path for path in sorted(data.rglob("*.png")) if {"Test", "images"} <= set(path.parts))
    return [
        f"trustcxr predict {shell_quote(run)} {shell_quote(image)}",
        f"trustcxr serve {shell_quote(run)}",
        f"trustcxr audit {shell_quote(run)} --data {shell_quote(data)} --out {shell_quote(out / 'audit')}",
    ]
