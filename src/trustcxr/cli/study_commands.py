"""Many trained models: `demo`, `study`, `status`, `verify`, `report`, `figures`, `prune`."""

import sys
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trustcxr.cli.options import DATA, Json, Threads, Track, pairs, print_json, tracker
from trustcxr.data.remote import check_exists
from trustcxr.errors import UserError
from trustcxr.storage import layout
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    from trustcxr.recipes.study_recipe import StudyRecipe
    from trustcxr.storage.schemas import StudyDocument

studies_app = typer.Typer()
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        help="Runs at once: one unless said, on a cluster all that fit. With several each has one thread (--threads).",
    ),
]
RayAddress = Annotated[
    str | None, typer.Option(help="Of ray: HOST:PORT of a cluster, or auto; one is started here unless said.")
]
Cpus = Annotated[int, typer.Option(help="Of ray and slurm: cores that each run needs.")]
Gpus = Annotated[
    float | None,
    typer.Option(
        help="Of ray and slurm: cards that a run needs; 0.5 lets two share one. SLURM is asked for none unless said."
    ),
]
Slurm = Annotated[
    list[str] | None, typer.Option("--slurm", help="Of slurm: an option of sbatch, such as partition=gpu; repeatable.")
]


@studies_app.command(epilog="Example: trustcxr demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the runs and the report.")] = Path("out/demo"),
    jobs: Jobs = None,
) -> None:
    """The whole protocol on synthetic X-rays in minutes, with a report at the end. Needs no data and no network."""
    from trustcxr.study import demo as demonstration

    _finish_study(demonstration.run(out, 1 if jobs is None else jobs), out)


@studies_app.command(epilog="Example: trustcxr study quick --data COVID-QU-Ex --out out/quick")
def study(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or one that `trustcxr recipe` lists.")],
    data: Annotated[Path | None, DATA] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study.")] = None,
    engine: Annotated[str, typer.Option(help="Where it runs: local, ray or slurm.")] = "local",
    jobs: Jobs = None,
    ray_address: RayAddress = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
    slurm: Slurm = None,
    devices: Annotated[
        int, typer.Option(help="Cards of this machine that share each training; without any, processes.")
    ] = 1,
    threads: Threads = None,
    check: Annotated[bool, typer.Option(help="First look what is wrong with the data, for the report.")] = True,
    seeds: Annotated[
        int | None, typer.Option(help="So many seeds of every run, from the recipe's on: spread beside intervals.")
    ] = None,
    track: Track = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List its runs, what is done and what each will cost; train nothing.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Of --dry-run: time each network now, some seconds each.")
    ] = True,
    json: Json = False,
) -> None:
    """The protocol: train, choose on validation, train robustly, test, explain, report. Started again, it goes on.

    What it will cost here, before anything is trained: trustcxr study paper --dry-run
    """
    from trustcxr.recipes.study_recipe import load_study, tracked, with_seeds

    if not measure and not dry_run:
        raise UserError("--no-measure is an option of --dry-run. Add --dry-run, or leave it out")
    chosen = load_study(recipe) if seeds is None else with_seeds(load_study(recipe), seeds)
    if track is not None:
        chosen = tracked(chosen, *tracker(track))
    from trustcxr.study import engines

    asked = engines.EngineOptions(jobs, engines.Needs(cpus, gpus), ray_address, pairs("--slurm", slurm or ()), devices)
    where = engines.get(engine, asked=asked)
    if dry_run:
        return _dry_run(chosen, data, out, json=json, devices=devices, measured=measure)
    images, place = _places(recipe, data, out, at_once=devices == 1)
    from trustcxr.study.run_study import Study

    whole = Study(chosen, images, place, where, check_data=check, devices=devices, threads=threads)
    return _finish_study(whole.run(), place, json=json)


def _places(recipe: str, data: Path | None, out: Path | None, *, at_once: bool) -> tuple[Path, Path]:
    """Where a study's images are and its results go; UserError where either is not said.

    `at_once`: and where there are no images, before what takes seconds to load. On several devices it is asked first
    whether they can share the recipe.
    """
    if data is None or out is None:
        missing = "--data PATH" if data is None else "--out DIR"
        raise UserError(f"study {recipe}: say {missing}; see trustcxr study --help")
    if at_once:
        check_exists(data)
    return data, out


def _dry_run(recipe: "StudyRecipe", data: Path | None, out: Path | None, *, json: bool, **how: Any) -> None:
    from trustcxr import report
    from trustcxr.report import status_text
    from trustcxr.study import status as standing

    plan = standing.dry_run(recipe, data, out, **how)
    if json:
        return print_json(plan)
    report.print_rows(f"{plan.study}: {recipe.title}", status_text.list_costs(plan))
    return _print_lines(
        (*(status_text.describe_timing(plan.costs) if plan.costs else ()), *status_text.describe_status(plan))
    )


@studies_app.command(epilog="Example: trustcxr status out/quick")
def status(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study, also while it runs.")],
    json: Json = False,
) -> None:
    """Where a study stands: which runs are done, running, failed and why; the time left, as far as it was measured."""
    from trustcxr import report
    from trustcxr.report import status_text
    from trustcxr.study import status as standing

    plan = standing.status(study)
    if json:
        return print_json(plan)
    report.print_rows(str(study), status_text.list_states(plan))
    return _print_lines(status_text.describe_status(plan))


@studies_app.command(epilog="Example: trustcxr verify out/quick")
def verify(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Folder of a finished study.", callback=layout.check_study)
    ],
    json: Json = False,
) -> None:
    """Compute every figure of a study again from its tables, and say which differ: then the exit code is 1."""
    from trustcxr.report import status_text
    from trustcxr.study import verify_study

    result = verify_study.verify(study)
    if json:
        print_json(result)
    else:
        _print_lines(status_text.describe_verification(result))
    if not result.agrees:
        raise typer.Exit(1)


@studies_app.command(epilog="Example: trustcxr report out/quick")
def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study, or of one tested run.")],
    tables: Annotated[
        bool, typer.Option("--tables", help="Also its tables as CSV, LaTeX and Markdown: report-tables/.")
    ] = False,
) -> None:
    """Write the HTML page of a study again from its tables, or that of a single run."""
    from trustcxr import report

    page = report.write(study, tables=tables)
    print(page)
    if tables:
        print(page.with_name("report-tables"))


@studies_app.command(epilog="Example: trustcxr figures out/quick --format pdf --width single")
def figures(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study, or of one tested run.")],
    kind: Annotated[str, typer.Option("--format", help="pdf, svg (both vector) or png (600 dots an inch).")] = "pdf",
    width: Annotated[str, typer.Option(help="single (89 mm) or double (183 mm): columns of a journal.")] = "single",
    out: Annotated[Path | None, typer.Option(help="Folder for them; STUDY/figures unless said.")] = None,
) -> None:
    """Every figure of the report as a file for a paper, and beside them its tables as CSV, LaTeX and Markdown."""
    from trustcxr.report import figure_export

    for path in figure_export.write_figures(study, kind=kind, width=width, out=out):
        print(path)


@studies_app.command(epilog="Example: trustcxr prune out/quick --older-than 60; then the same with --remove")
def prune(
    places: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER...]", help="Runs and studies whose checkpoints are looked at."),
    ] = None,
    older_than: Annotated[float, typer.Option(help="Days since it was last used.")] = 30.0,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is listed as old.")] = False,
    json: Json = False,
) -> None:
    """Old decoded images and checkpoints, with sizes and ages; removed with --remove alone, and never while written."""
    from trustcxr import report
    from trustcxr.report import status_text
    from trustcxr.storage.os_errors import megabytes
    from trustcxr.study import cache_prune

    found = cache_prune.prune(places or (), older_than=older_than, remove=remove)
    if json:
        return print_json(found)
    if found.found:
        report.print_rows(f"decoded images in {found.cache}, and checkpoints", status_text.list_prunable(found))
    done = f"{megabytes(found.freed)} are free again" if remove else f"{megabytes(found.removable)} are old"
    return print(done + ("" if remove or not found.removable else "; the same command with --remove removes them"))


def _print_lines(lines: Iterable[str]) -> None:
    for line in (*lines, NOTICE):
        print(line)


def _finish_study(document: "StudyDocument", out: Path, *, json: bool = False) -> None:
    """Write the page and say how the study ended; with `json`, study.json on stdout and all that is said on stderr."""
    from trustcxr import report

    page = report.write(out)
    if json:
        print_json(document)
    with redirect_stdout(sys.stderr) if json else nullcontext():
        _say_how_it_ended(document, page)
    if document.failures:
        raise typer.Exit(1)


def _say_how_it_ended(document: "StudyDocument", page: Path) -> None:
    from rich.console import Console

    from trustcxr import report
    from trustcxr.study import run_study

    console = Console()
    report.print_study(document)
    for alarm in document.alarms:
        console.print(f"ALARM {alarm.run}: {alarm.text}", style="yellow", markup=False)
    for failure in document.failures:
        console.print(f"FAILED {failure.run}: {failure.reason}", style="red", markup=False)
    print(f"{run_study.summary(document)}\nreport: {page}\n{NOTICE}")
    if document.failures:
        print(f"missing: {run_study.missing(document)}; the same command tries only that again")
