"""Run and report studies: `demo`, `study`, `status`, `verify`, `report`, `recipe`."""

import sys
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option, Typer

from trustcxr.cli.options import DATA, Json, StudyThreads, Track, parse_pairs, parse_tracker, print_json
from trustcxr.data.remote import check_exists
from trustcxr.errors import UserError
from trustcxr.storage import layout
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    from trustcxr.storage.schemas import StudyDocument, StudyPlan

study_app = Typer()
_FULL = "More images, larger networks and all severities: 6 minutes."
_SLURM = "For slurm: an sbatch option such as partition=gpu; repeatable."
_DRY_RUN = "List the runs and their state, with --data also the time that they need; train nothing."
Jobs = Annotated[int | None, Option("--jobs", help="Concurrent runs. Default: 1; on a cluster, as many as fit.")]


@study_app.command(epilog="Example: trustcxr demo --out out/demo")
def demo(
    out: Annotated[Path, Option(help="Folder for the data, the runs and the report.")] = Path("out/demo"),
    jobs: Jobs = None,
    full: Annotated[bool, Option("--full/--quick", help=_FULL)] = False,
) -> None:
    """Run a whole small study on synthetic images in minutes. Needs no data and no network."""
    from trustcxr.study import demo as demo_study

    document = demo_study.run(out, 1 if jobs is None else jobs, full=full)
    _finish_study(document, out)
    commands = (f"  {command}" for command in demo_study.list_next(document, out))
    print("Next, with this study and its synthetic images:", *commands, sep="\n")
    print("Next, with your own images: trustcxr study quick --data FOLDER --out out/quick")


@study_app.command(epilog="Example: trustcxr study quick --data COVID-QU-Ex --out out/quick")
def study(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or a name that `trustcxr recipe` lists.")],
    data: Annotated[Path | None, DATA] = None,
    out: Annotated[Path | None, Option(help="Folder of the study.")] = None,
    engine: Annotated[str, Option(help="Where it runs: local, ray or slurm.")] = "local",
    jobs: Jobs = None,
    ray_address: Annotated[str | None, Option(help="For ray: HOST:PORT, or auto. Default: start one here.")] = None,
    cpus: Annotated[int, Option(help="For ray and slurm: cores of each run.")] = 1,
    gpus: Annotated[float | None, Option(help="For ray and slurm: GPUs of each run, such as 0.5.")] = None,
    slurm: Annotated[list[str] | None, Option(help=_SLURM)] = None,
    devices: Annotated[int, Option(help="GPUs (or processes) that share a training.")] = 1,
    threads: StudyThreads = None,
    check: Annotated[bool, Option(help="First check the data, for the report.")] = True,
    seeds: Annotated[int | None, Option(help="Number of seeds of every run, counted from the recipe's.")] = None,
    track: Track = None,
    dry_run: Annotated[bool, Option("--dry-run", help=_DRY_RUN)] = False,
    json: Json = False,
) -> None:
    """Run a study: train, select on validation, train robustly, test, explain, report. Start it again to resume.

    To see the cost before anything is trained: trustcxr study paper --data FOLDER --dry-run
    """
    from trustcxr.recipes.study_recipe import load_study, with_seeds, with_tracker

    chosen = load_study(recipe) if seeds is None else with_seeds(load_study(recipe), seeds)
    chosen = with_tracker(chosen, **parse_tracker(track))
    if data is not None and devices == 1:  # several devices: whether the recipe can share them is checked first
        check_exists(data)
    from trustcxr.study import engines

    sbatch = parse_pairs("--slurm", slurm, "write key=value, such as partition=gpu")
    options = engines.EngineOptions(jobs, engines.Needs(cpus, gpus), ray_address, sbatch, devices)
    chosen_engine = engines.get(engine, options=options)
    if dry_run:
        from trustcxr.study import cost

        plan = cost.dry_run(chosen, data, out, devices=devices)
        return _show_plan(plan, f"{plan.study}: {chosen.title}", json=json)
    if data is None or out is None:
        missing = "--data PATH" if data is None else "--out DIR"
        raise UserError(f"study {recipe}: say {missing}; see trustcxr study --help")
    from trustcxr.study.run_study import Study

    whole = Study(chosen, data, out, chosen_engine, check_data=check, devices=devices, threads=threads)
    return _finish_study(whole.run(), out, json=json)


@study_app.command(epilog="Example: trustcxr status out/quick")
def status(
    study: Annotated[Path, Argument(metavar="STUDY", help="Folder of a study; it may be running.")], json: Json = False
) -> None:
    """Show which runs of a study are done, running or failed, and the time left."""
    from trustcxr.study import status as study_status

    _show_plan(study_status.status(study), str(study), json=json)


def _show_plan(plan: "StudyPlan", title: str, *, json: bool) -> None:
    from trustcxr import report
    from trustcxr.report import terminal

    if json:
        return print_json(plan)
    report.print_rows(title, terminal.list_states(plan))
    return _print_lines(terminal.describe_status(plan))


@study_app.command(epilog="Example: trustcxr verify out/quick")
def verify(
    study: Annotated[Path, Argument(metavar="STUDY", help="Folder of a finished study.", callback=layout.check_study)],
    json: Json = False,
) -> None:
    """Compute every figure of a study again from its tables. The exit code is 1 if one differs."""
    from trustcxr.report import terminal
    from trustcxr.study import verify_study

    result = verify_study.verify(study)
    print_json(result) if json else _print_lines(terminal.describe_verification(result))
    if not result.agrees:
        raise Exit(1)


@study_app.command(epilog="Example: trustcxr report out/quick --tables --figures out/figures --format pdf")
def report(
    study: Annotated[Path, Argument(metavar="STUDY", help="Folder of a study, or of one tested run.")],
    tables: Annotated[bool, Option("--tables", help="Also CSV, LaTeX and Markdown tables.")] = False,
    figures: Annotated[Path | None, Option(help="Also every figure for a paper, into this folder.")] = None,
    kind: Annotated[str | None, Option("--format", help="pdf, svg or png (600 dpi). Default: pdf.")] = None,
    width: Annotated[str | None, Option(help="single (89 mm) or double (183 mm).")] = None,
) -> None:
    """Write the HTML page of a study, or of a single run, from its tables."""
    from trustcxr import report

    if figures is None and (kind or width):
        raise UserError(f"--{'format' if kind else 'width'} needs --figures. Add --figures DIR.")
    options = {"kind": kind or "pdf", "width": width or "single"}
    paths = [] if figures is None else report.write_figures(study, out=figures, **options)
    page = report.write(study, tables=tables)
    print(page, *([page.with_name("report-tables")] if tables else []), *paths, sep="\n")


@study_app.command(epilog="Example: trustcxr recipe quick > my.yaml; then trustcxr study my.yaml")
def recipe(
    name: Annotated[str, Argument(metavar="[NAME]", help="Name of a recipe; without it, all are listed.")] = "",
) -> None:
    """Print a recipe of the package, each key with its meaning, as a start for your own."""
    from trustcxr.recipes import study_recipe

    if name:
        return print(study_recipe.format_recipe(name), end="")
    return print(*(f"{key:<16}{title}" for key, title in study_recipe.recipe_titles().items()), sep="\n")


def _print_lines(lines: Iterable[str]) -> None:
    print(*lines, NOTICE, sep="\n")


def _finish_study(document: "StudyDocument", out: Path, *, json: bool = False) -> None:
    """Write the page and print the outcome. With `json`, study.json goes to stdout, all else to stderr."""
    from rich.console import Console

    from trustcxr import report
    from trustcxr.study import run_study

    page = report.write(out)
    if json:
        print_json(document)
    with redirect_stdout(sys.stderr) if json else nullcontext():
        console = Console()
        report.print_study(document)
        for alarm in document.alarms:
            console.print(f"ALARM {alarm.run}: {alarm.text}", style="yellow", markup=False)
        for failure in document.failures:
            console.print(f"FAILED {failure.run}: {failure.reason}", style="red", markup=False)
        print(f"{run_study.summary(document)}\nreport: {page}\n{NOTICE}")
        if document.failures:
            print(f"missing: {run_study.missing(document)}; the same command tries only that again")
    if document.failures:
        raise Exit(1)
