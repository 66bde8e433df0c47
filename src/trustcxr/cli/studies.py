"""Many trained models: `demo`, `study`, `report`, `figures`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trustcxr.about import NOTICE
from trustcxr.cli.options import (
    Data,
)

if TYPE_CHECKING:
    from trustcxr.results.documents import StudyDocument

studies_app = typer.Typer()
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        help="Runs at once, each with its share of the threads; equal bits need equal threads (OMP_NUM_THREADS=1).",
    ),
]


@studies_app.command(epilog="Example: trustcxr demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the runs and the report.")] = Path("out/demo"),
    jobs: Jobs = 1,
) -> None:
    """The whole protocol on synthetic X-rays in minutes, with a report at the end. Needs no data and no network."""
    from trustcxr.study import demo as demonstration

    _finish_study(demonstration.run(out, jobs), out)


@studies_app.command(epilog="Example: trustcxr study quick --data COVID-QU-Ex --out out/quick")
def study(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="quick, paper, demo, or a YAML file.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    engine: Annotated[str, typer.Option(help="Where it runs: local.")] = "local",
    jobs: Jobs = 1,
    check: Annotated[bool, typer.Option(help="First look what is wrong with the data, for the report.")] = True,
) -> None:
    """The protocol: train, choose on validation, train robustly, test, explain, report. Started again, it goes on."""
    from trustcxr.recipes.study import load_study
    from trustcxr.study import engines
    from trustcxr.study.protocol import Study

    chosen = load_study(recipe)
    _finish_study(Study(chosen, data, out, engines.get(engine, jobs), check_data=check).run(), out)


@studies_app.command(epilog="Example: trustcxr report out/quick")
def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study, or of one tested run.")],
    tables: Annotated[bool, typer.Option("--tables", help="Also its tables as CSV and LaTeX: report-tables/.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Also the tables as Markdown and CSV.")] = False,
) -> None:
    """Write the HTML page of a study again from its tables, or that of a single run."""
    from trustcxr import report

    page = report.write(study, tables=tables)
    print(page)
    if tables:
        print(page.with_name("report-tables"))
    if markdown:
        from trustcxr.report import markdown as pages
        from trustcxr.study import comparison

        for path in pages.write(study, beyond=comparison.beyond_activations(study)):
            print(path)


@studies_app.command(epilog="Example: trustcxr figures out/quick --format pdf --width single")
def figures(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study, or of one tested run.")],
    kind: Annotated[str, typer.Option("--format", help="pdf, svg (both vector) or png (600 dots an inch).")] = "pdf",
    width: Annotated[str, typer.Option(help="single (89 mm) or double (183 mm): columns of a journal.")] = "single",
    out: Annotated[Path | None, typer.Option(help="Folder for them; STUDY/figures unless said.")] = None,
) -> None:
    """Every figure of the report as a file for a paper, and beside them its tables as CSV and LaTeX."""
    from trustcxr.report import paper

    for path in paper.write(study, kind=kind, width=width, out=out):
        print(path)


def _finish_study(document: "StudyDocument", out: Path) -> None:
    from rich.console import Console

    from trustcxr import report
    from trustcxr.study import protocol

    page = report.write(out)
    console = Console()
    console.print(report.leaderboard(document))
    if rows := report.over_seeds(document):
        report.print_rows("Over seeds: mean ± standard deviation", rows)
    for alarm in document.alarms:
        console.print(f"ALARM {alarm.run}: {alarm.text}", style="yellow", markup=False)
    for failure in document.failures:
        console.print(f"FAILED {failure.run}: {failure.reason}", style="red", markup=False)
    print(f"{protocol.summary(document)}\nreport: {page}\n{NOTICE}")
    if document.failures:
        print(f"missing: {protocol.missing(document)}; the same command tries only that again")
        raise typer.Exit(1)
