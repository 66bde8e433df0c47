"""The command line: parse, call, print. No logic.

Exit codes: 0 done, 1 a fault of the program, 2 the user's input is wrong (one line: what, where, what to do).
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trustcxr.about import NOTICE, __version__
from trustcxr.cli_options import (
    SALIENCY_METHODS,
    Attacks,
    Background,
    Columns,
    Corruptions,
    Data,
    Defence,
    Epsilons,
    Images,
    Json,
    Labels,
    Patience,
    PlantedShortcuts,
    RunFolder,
    Settings,
    Severities,
    Source,
    Steps,
    TrainingEpsilon,
    label_map,
    listing,
)
from trustcxr.errors import UserError

app = typer.Typer(
    name="trustcxr",
    help=f"Can this chest X-ray classifier be trusted? {NOTICE}\n\nStart with: trustcxr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data, make some, or bring it here.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as problem:
        print(f"trustcxr: {' '.join(str(problem).split())}", file=sys.stderr)
        sys.exit(2)
    except Exception as problem:
        if not hasattr(problem, "format_message"):
            raise
        # Typer's own complaint: a missing or unknown option, a value of the wrong kind.
        at = getattr(problem, "ctx", None)
        hint = f"; see {at.command_path} --help" if at else ""
        print(f"trustcxr: {' '.join(problem.format_message().split())}{hint}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("trustcxr: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"trustcxr {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: trustcxr demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the runs and the report.")] = Path("out/demo"),
) -> None:
    """The whole protocol on synthetic X-rays in minutes, with a report at the end. Needs no data and no network."""
    from trustcxr.study import demo as demonstration

    _finish_study(demonstration.run(out), out)


@app.command(epilog="Example: trustcxr models")
def models(json: Json = False) -> None:
    """The 21 networks of the study and their parameters."""
    from trustcxr import report
    from trustcxr.models.zoo import paper_models

    rows = paper_models()
    if json:
        return _print_json(rows)
    return report.print_rows("The 21 networks; any other timm name works too", rows)


@app.command(
    epilog="Example: trustcxr train --data COVID-QU-Ex --model ResNet50 --defence fgsm --out out/resnet50-fgsm"
)
def train(
    data: Data,
    model: Annotated[str, typer.Option(help="One of `trustcxr models`, or any timm name; A+B: both, side by side.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    defence: Defence = "standard",
    weights: Annotated[str, typer.Option(help="imagenet, none, or a weights file.")] = "imagenet",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="At most so many epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam.")] = None,
    patience: Patience = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    epsilon: TrainingEpsilon = 0.02,
    ramp: Annotated[float, typer.Option(help="Share of training over which epsilon grows.")] = 0.0,
    clean_share: Annotated[float, typer.Option(help="Share of the loss on clean images.")] = 0.0,
    background: Background = "full",
    set_: Settings = None,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
) -> None:
    """Train one run. Started again after a cut, it goes on from its last epoch."""
    from trustcxr.report.terminal import trained
    from trustcxr.study import run_folder

    training = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "precision": precision,
    }
    recipe = run_folder.recipe(
        model=model,
        weights=weights,
        defence={"name": defence, "epsilon": epsilon, "ramp": ramp, "clean_share": clean_share},
        size=size,
        seed=seed,
        training={k: v for k, v in training.items() if v is not None} | {"background": background},
        data={"labels": label_map(label), **listing(column, images)},
        options=set_ or (),
    )
    summary = run_folder.train(recipe, data, out)
    print(f"{out}: {trained(summary)}")
    print(f"next: trustcxr evaluate {out} --data '{data}'")


@app.command(epilog="Example: trustcxr evaluate out/run --data COVID-QU-Ex --attack pgd --epsilon 0.01 --epsilon 0.02")
def evaluate(
    run: RunFolder,
    data: Data,
    split: Annotated[str | None, typer.Option(help="Split to test on; the run's test split unless said.")] = None,
    attack: Attacks = None,
    epsilon: Epsilons = None,
    steps: Steps = None,
    queries: Annotated[int | None, typer.Option(help="Of square, also in worst-case. 1000 unless said.")] = None,
    source: Source = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="At nine epsilons from 0 to 0.3: the whole curve.")] = False,
    corruption: Corruptions = None,
    severity: Severities = None,
    shortcuts: PlantedShortcuts = False,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """A run on any data set, clean and under attack, with intervals; writes predictions.parquet and metrics.json."""
    from trustcxr import report
    from trustcxr.report import terminal as terminal_lines
    from trustcxr.study import run_folder

    document, folder = run_folder.evaluate(
        run,
        data,
        split=split,
        attacks=attack,
        epsilons=epsilon,
        steps=steps,
        queries=queries,
        source=source,
        sweep=sweep,
        corruptions=corruption,
        severities=severity,
        shortcuts=shortcuts,
        labels=label_map(label),
        listing=listing(column, images),
    )
    if json:
        return _print_json(document)
    report.print_rows(
        f"{document['run']} on {document['split']} ({document['clean']['n']} images)", terminal_lines.rows(document)
    )
    for line in terminal_lines.remarks(document):
        print(line)
    for alarm in document["alarms"]:
        print(f"ALARM: {alarm['text']}")
    print(f"written to {folder}\n{NOTICE}")
    return None


@app.command(epilog="Example: trustcxr explain out/run --data COVID-QU-Ex")
def explain(
    run: RunFolder,
    data: Data,
    method: Annotated[list[str] | None, typer.Option(help=SALIENCY_METHODS)] = None,
    split: Annotated[str | None, typer.Option(help="Split to explain; the run's test split unless said.")] = None,
    epsilon: Annotated[
        float, typer.Option(help="Of the FGSM and PGD images against which stability is measured.")
    ] = 0.02,
    corruption: Annotated[
        list[str] | None, typer.Option(help="Under which stability is measured; repeatable. All unless said.")
    ] = None,
    severity: Annotated[int, typer.Option(help="Of the corruptions, 1 to 5.")] = 3,
    sample: Annotated[
        int, typer.Option(help="Images drawn for faithfulness, sanity and stability under PGD; 0: none.")
    ] = 32,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Saliency of a run, measured against the radiologists' masks, each measure beside chance."""
    from trustcxr import report
    from trustcxr.report.terminal import saliency_rows
    from trustcxr.study import run_folder

    options = {
        "methods": method,
        "epsilon": epsilon,
        "corruptions": corruption,
        "severity": severity,
        "sample": sample,
    }
    document, folder = run_folder.explain(
        run,
        data,
        options={k: v for k, v in options.items() if v is not None},
        split=split,
        labels=label_map(label),
        listing=listing(column, images),
    )
    if json:
        return _print_json(document)
    for name, part in document["saliency"].items():
        report.print_rows(f"{document['run']}, {name}: {part['n']} annotated images", saliency_rows(part))
    print(f"written to {folder}\n{NOTICE}")
    return None


@app.command(epilog="Example: trustcxr study quick --data COVID-QU-Ex --out out/quick")
def study(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="quick, paper, demo, or a YAML file.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    engine: Annotated[str, typer.Option(help="Where it runs: local.")] = "local",
) -> None:
    """The protocol: train, choose on validation, train robustly, test, explain, report. Started again, it goes on."""
    from trustcxr.recipes.study import load_study
    from trustcxr.study import engines
    from trustcxr.study.protocol import Study

    chosen = load_study(recipe)
    _finish_study(Study(chosen, data, out, engines.get(engine)).run(), out)


@app.command(epilog="Example: trustcxr report out/quick")
def report(study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")]) -> None:
    """Write the HTML page of a study again from its tables."""
    from trustcxr import report
    from trustcxr.results import folders

    print(report.write(folders.check_study(study)))


@app.command(epilog="Example: trustcxr predict out/run chest.png")
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    epsilon: Annotated[float, typer.Option(help="Does the answer survive this L-infinity radius?")] = 0.02,
    out: Annotated[Path | None, typer.Option(help="Folder for the heatmaps; beside each image unless said.")] = None,
    json: Json = False,
) -> None:
    """One image or several: classes with probabilities, a heatmap PNG, and whether the answer survives epsilon."""
    from trustcxr.explain import one_image
    from trustcxr.report import terminal

    answers = one_image.predict(run, images, epsilon=epsilon, out=out)
    if json:
        _print_json({"notice": NOTICE, "epsilon": epsilon, "images": answers})
    else:
        for answer in answers:
            print("\n".join(terminal.sentences(answer)))
        print(NOTICE)
    if any("error" in answer for answer in answers):
        raise typer.Exit(2)


@data_app.command(
    "check", epilog="Example: trustcxr data check COVID-QU-Ex --html out/check.html --clean out/clean.parquet"
)
def data_check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of X-rays, a list of images, or a manifest.")],
    html: Annotated[Path | None, typer.Option(help="Write one page with pictures of each finding.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Write a manifest (.parquet or .csv) without what leaks.")] = None,
    probes: Annotated[bool, typer.Option(help="Look for confounds: what gives the class away.")] = True,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Read every file; say what is there and what is wrong: faults, leaks between splits, confounds."""
    from trustcxr.data.audit import audit

    found = audit(path, probes=probes, **listing(column, images))
    if html:
        found.write_page(html)
    if clean:
        found.write_clean(clean)
    if json:
        return _print_json(found.to_dict() | {"notice": NOTICE})
    print(found.text())
    for written in (html, clean):
        if written:
            print(f"written to {written}")
    print(NOTICE)
    return None


@data_app.command("download", epilog="Example: trustcxr data download covidqu --to COVID-QU-Ex")
def data_download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="covidqu.")],
    to: Annotated[Path | None, typer.Option(help="Folder to keep it in; kagglehub's own cache unless said.")] = None,
) -> None:
    """Bring a public data set through kagglehub; this is the one data command that uses the network."""
    from trustcxr.data.download import download_covidqu
    from trustcxr.errors import unknown

    if name != "covidqu":
        raise unknown("data set", name, ["covidqu"])
    folder = download_covidqu(to)
    print(f"{folder}\nnext: trustcxr data check '{folder}'")


@data_app.command("phantom", epilog="Example: trustcxr data phantom out/phantom --per-class 100")
def data_phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, in COVID-QU-Ex's layout.")],
    per_class: Annotated[
        int, typer.Option(help="Training images of each class; a quarter as many to validate, a third to test.")
    ] = 100,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same films.")] = 0,
    shortcut: Annotated[
        list[str] | None,
        typer.Option(help="Plant one, such as marker=0.9 (also border, brightness, scanner_noise, tube); repeatable."),
    ] = None,
) -> None:
    """Write synthetic chest X-rays with known lesions, exact masks and, if asked, planted shortcuts."""
    from trustcxr.data import phantom

    counts = {"Train": per_class, "Val": max(1, per_class // 4), "Test": max(1, per_class // 3)}
    phantom.write(out, counts, size=size, seed=seed, shortcuts=shortcut or [])
    total = sum(counts.values()) * len(phantom.CLASSES)
    print(f"{out}: {total} synthetic films in the layout of COVID-QU-Ex. {NOTICE}")


@data_app.command("corruptions", epilog="Example: trustcxr data corruptions out/corruptions.png")
def data_corruptions(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Picture to write, such as corruptions.png.")],
    film: Annotated[Path | None, typer.Option(help="An X-ray to show them on; a synthetic one unless said.")] = None,
    size: Annotated[int, typer.Option(min=16, max=1024, help="Side of the film in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed draws the same.")] = 0,
) -> None:
    """A sheet of every corruption at every severity, to look at."""
    from trustcxr.corruptions import sheet

    print(f"{sheet.write(out, size=size, film=film, seed=seed)}\n{NOTICE}")


def _finish_study(document: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    from trustcxr import report
    from trustcxr.study import protocol

    page = report.write(out)
    console = Console()
    console.print(report.leaderboard(document))
    for alarm in document["alarms"]:
        console.print(f"ALARM {alarm['run']}: {alarm['text']}", style="yellow", markup=False)
    for failure in document["failures"]:
        console.print(f"FAILED {failure['run']}: {failure['reason']}", style="red", markup=False)
    print(f"{protocol.summary(document)}\nreport: {page}\n{NOTICE}")
    if document["failures"]:
        raise typer.Exit(1)


def _print_json(document: Any) -> None:
    from trustcxr.results.files import to_json

    sys.stdout.write(to_json(document))
