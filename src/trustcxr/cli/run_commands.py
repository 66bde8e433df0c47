"""One trained model: `train`, `evaluate`, `explain`, `predict`, `export`, `push`, and the networks to choose from."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trustcxr.cli.options import (
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
    Steps,
    Surrogate,
    Threads,
    Track,
    TrainingEpsilon,
    TrustCode,
    is_set,
    label_map,
    listing,
    print_json,
    settings,
    tracker,
)
from trustcxr.data.remote import check_exists, is_address
from trustcxr.errors import UserError
from trustcxr.storage import layout
from trustcxr.storage.os_errors import check_present, shell_quote
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    from trustcxr.storage.schemas import RunDocument

runs_app = typer.Typer()


@runs_app.command(epilog="Example: trustcxr models")
def models(json: Json = False) -> None:
    """The 21 networks of the study and their parameters."""
    from trustcxr import report
    from trustcxr.models.zoo import paper_models

    rows = [found._asdict() for found in paper_models()]
    if json:
        return print_json(rows)
    report.print_rows("The 21 networks; any other timm name works too", rows)
    print("Beside them, untrained: plain3, plain5, whose answers `trustcxr certify` can prove;")
    print("evidence-33 and its like, whose map is the arithmetic of the answer.")
    return None


@runs_app.command(
    epilog="Example: trustcxr train --data COVID-QU-Ex --model ResNet50 --defence fgsm --out out/resnet50-fgsm"
)
def train(
    context: typer.Context,
    data: Data,
    model: Annotated[str, typer.Option(help="One of `trustcxr models`, or any timm name; A+B: an ensemble of both.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    defence: Defence = "standard",
    weights: Annotated[str, typer.Option(help="imagenet, none, or a weights file.")] = "imagenet",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="At most so many epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the optimiser (recipe default: 5e-4).")] = None,
    patience: Patience = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    devices: Annotated[int, typer.Option(help="Cards that share each batch; without any, processes.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines of so many cards; start the same command on each.")] = 1,
    strategy: Annotated[str, typer.Option(help="ddp, or ddp_find_unused_parameters_true.")] = "ddp",
    threads: Threads = None,
    epsilon: TrainingEpsilon = 0.02,
    ramp: Annotated[float, typer.Option(help="Share of training over which epsilon grows.")] = 0.0,
    clean_share: Annotated[float, typer.Option(help="Share of the loss on clean images.")] = 0.0,
    background: Background = "full",
    set_: Settings = None,
    track: Track = None,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
) -> None:
    """Train one run. Started again after a cut, it goes on from its last epoch."""
    from trustcxr.report.terminal import describe_training
    from trustcxr.runs import run_folder
    from trustcxr.training.threads import use_threads

    where, uri = tracker(track)
    training = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "precision": precision,
        "track": where if track else None,
        "tracking_uri": uri or None,
    }
    recipe = run_folder.recipe(
        model=model,
        weights=weights,
        defence={"name": defence, "epsilon": epsilon, "ramp": ramp, "clean_share": clean_share},
        size=size,
        seed=seed,
        training={k: v for k, v in training.items() if v is not None} | {"background": background},
        data={"labels": label_map(label), **listing(column, images)},
        options=settings(context, set_),
    )
    with use_threads(threads):
        summary = run_folder.train(recipe, data, out, devices=devices, nodes=nodes, strategy=strategy)
    print(f"{out}: {describe_training(summary, recipe.defence.at_epsilon)}")
    print(f"next: trustcxr evaluate {shell_quote(out)} --data {shell_quote(data)}")


@runs_app.command(
    epilog="Example: trustcxr evaluate out/run --data COVID-QU-Ex --attack pgd --epsilon 0.01 --epsilon 0.02"
)
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    data: Data,
    split: Annotated[str | None, typer.Option(help="Split to test on; the run's test split unless said.")] = None,
    attack: Attacks = None,
    epsilon: Epsilons = None,
    steps: Steps = None,
    queries: Annotated[int | None, typer.Option(help="Of square, also in worst-case. 1000 unless said.")] = None,
    surrogate: Surrogate = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="At nine epsilons from 0 to 0.3: the whole curve.")] = False,
    corruption: Corruptions = None,
    severity: Severities = None,
    shortcuts: PlantedShortcuts = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; within the run's unless said.")] = None,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """A run on any data set, clean and under attack, with intervals; writes predictions.parquet and metrics.json."""
    if is_set(str(run)):
        command = f"trustcxr audit {shell_quote(run)} --data {shell_quote(data)} --out DIR"
        raise UserError(f"{run}: no run's folder; any other model is examined by {command}")
    if surrogate is None:  # else whether an attack takes it is said first
        check_exists(data)
    from trustcxr import report
    from trustcxr.report import terminal as terminal_lines
    from trustcxr.runs import run_folder

    document, folder = run_folder.evaluate(
        run,
        data,
        split=split,
        attacks=attack,
        epsilons=epsilon,
        steps=steps,
        queries=queries,
        surrogate=surrogate,
        sweep=sweep,
        corruptions=corruption,
        severities=severity,
        shortcuts=shortcuts,
        labels=label_map(label),
        listing=listing(column, images),
        out=out,
    )
    if json:
        return print_json(document)
    for note in document.notes:
        print(f"NOTE: {note}")
    report.print_rows(
        f"{document.run} on {document.split} ({document.clean.n} images)", terminal_lines.list_accuracies(document)
    )
    for line in terminal_lines.describe_metrics(document):
        print(line)
    for alarm in document.alarms:
        print(f"ALARM: {alarm.text}")
    print(f"written to {folder}\n{NOTICE}")
    return None


@runs_app.command(epilog="Example: trustcxr certify out/run --data COVID-QU-Ex --epsilon 0.005 --epsilon 0.02")
def certify(
    run: RunFolder,
    data: Data,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="L-infinity radius; repeatable. 0.005, 0.01 and 0.02 unless said.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to prove; the run's test split unless said.")] = None,
    method: Annotated[
        str, typer.Option(help="ibp: intervals alone. crown: CROWN too where they prove nothing.")
    ] = "crown",
    steps: Annotated[int, typer.Option(help="Gradients in CROWN's slopes, for tighter bounds.")] = 10,
    neurons: Annotated[int, typer.Option(help="CROWN bounds layers of at most so many ReLUs a network too.")] = 256,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """The share of images whose answer is proved not to change within epsilon, beside what attacks leave."""
    check_exists(data)  # before what takes seconds to load
    from trustcxr import report
    from trustcxr.certify.verify import effort
    from trustcxr.report.load import Run
    from trustcxr.report.tables.certified import proved
    from trustcxr.runs import run_folder

    document, folder = run_folder.certify(
        run,
        data,
        epsilons=epsilon,
        effort=effort(method, neurons=neurons, steps=steps),
        split=split,
        labels=label_map(label),
        listing=listing(column, images),
    )
    if json:
        return print_json(document)
    if table := proved([Run(document, folder, [])]):
        report.print_table(table)
    for alarm in document.alarms:
        print(f"ALARM: {alarm.text}")
    print(f"written to {folder}\n{NOTICE}")
    return None


@runs_app.command(epilog="Example: trustcxr explain out/run --data COVID-QU-Ex")
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a trained run, or a model file (.yaml).")],
    data: Data,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; of a run within its own unless said.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help=SALIENCY_METHODS)] = None,
    split: Annotated[str | None, typer.Option(help="Split to explain; the test split unless said.")] = None,
    epsilon: Annotated[
        float, typer.Option(help="Of the FGSM and PGD images against which stability is measured.")
    ] = 0.02,
    corruption: Annotated[
        list[str] | None, typer.Option(help="Under which stability is measured; repeatable. all unless said.")
    ] = None,
    severity: Annotated[int, typer.Option(help="Of the corruptions, 1 to 5.")] = 3,
    sample: Annotated[
        int, typer.Option(help="Images drawn for faithfulness, sanity and stability under PGD; 0: none.")
    ] = 32,
    finding: Annotated[
        str | None, typer.Option(help="Of a model with a sigmoid for each, the one explained, on images that have it.")
    ] = None,
    trust_code: TrustCode = False,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Saliency of a run, or of what a model file names, against the radiologists' masks, each measure beside chance."""
    given = is_set(model)
    if given and out is None:
        raise UserError(f"explain {model}: say --out DIR; see trustcxr explain --help")
    if finding is not None and not given:
        raise UserError(f"--finding {finding}: a run answers with one of its classes; leave it out")
    check_exists(data)  # before what takes seconds to load
    options = {
        "methods": method,
        "epsilon": epsilon,
        "corruptions": "all" if corruption and "all" in corruption else corruption,
        "severity": severity,
        "sample": sample,
    }
    typed: Mapping[str, Any] = {
        "options": {k: v for k, v in options.items() if v is not None},
        "split": split,
        "labels": label_map(label),
        "listing": listing(column, images),
    }
    if given and out is not None:
        from trustcxr.audit import explain_external

        typed = {**typed, "trust_code": trust_code, "finding": finding}
        document, folder = explain_external.explain(model, data, out, **typed), out
    else:
        from trustcxr.runs import run_folder

        document, folder = run_folder.explain(Path(model), data, out=out, **typed)
    return print_json(document) if json else _print_saliency(document, folder)


def _print_saliency(document: "RunDocument", folder: Path) -> None:
    from trustcxr import report
    from trustcxr.explain.verdicts import SURVIVES
    from trustcxr.report.load import Run
    from trustcxr.report.tables.lesions import effects
    from trustcxr.report.terminal import describe_saliency, list_saliency

    for name, part in document.saliency.items():
        report.print_rows(f"{document.run}, {name}: {part.n} annotated images", list_saliency(part))
        for line in describe_saliency(part):
            print(f"  {line}")
    if document.lesions:
        report.print_table(effects([Run(document, folder, [])]))
    for alarm in document.alarms:
        if alarm.kind != SURVIVES:  # said above, of each map
            print(f"ALARM: {alarm.text}")
    print(f"written to {folder}\n{NOTICE}")


@runs_app.command(epilog="Example: trustcxr predict out/run chest.png")
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of DICOM studies.")],
    epsilon: Annotated[float, typer.Option(help="Does the answer survive this L-infinity radius?")] = 0.02,
    out: Annotated[Path | None, typer.Option(help="Folder for the heatmaps; beside each image unless said.")] = None,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Also as DICOM: heatmap (Secondary Capture), finding (Structured Report).")
    ] = False,
    json: Json = False,
) -> None:
    """One image or several: classes with probabilities, a heatmap PNG, and whether the answer survives epsilon.

    An answer survives where neither FGSM nor PGD-20, changing no pixel by more than epsilon, found a picture that gets
    another class. Heatmaps never take the place of other files; Ctrl-C keeps those that are written. Of a folder the
    frontal chest images are answered (DICOM, with or without a DICOMDIR), and what else is there is named. An image
    that cannot be read, or beside which no heatmap can be written, does not stop the others; a full disk does.
    """
    check_present(images)
    from trustcxr.apps.dicom import studies_on_disk
    from trustcxr.report import terminal

    answers = studies_on_disk.predict(run, images, epsilon=epsilon, out=out, objects=dicom)
    if json:
        print_json({"notice": NOTICE, "epsilon": epsilon, "images": answers})
    else:
        for answer in answers:
            print("\n".join(terminal.describe_answer(answer)))
        print(NOTICE)
    if refused := terminal.describe_failures(answers):
        raise UserError(refused)


@runs_app.command(epilog="Example: trustcxr export out/run --format onnx --out run.onnx --data COVID-QU-Ex")
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a trained run, or hf://owner/name.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file, .onnx or .pt2; its model file is written beside it. In the run's folder model.onnx or "
            "program.pt2 unless said."
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="onnx or torch-export.")] = "onnx",
    data: Annotated[Path | None, typer.Option(help="Images to try it on; synthetic ones unless said.")] = None,
    json: Json = False,
) -> None:
    """A run as one file that others can run and `trustcxr audit` takes, held against the run before it is kept."""
    if not is_address(run):
        layout.check_run(Path(run))
    if data is not None:
        check_exists(data)
    from trustcxr.audit import export_run
    from trustcxr.report import terminal

    found = export_run.export(run, format, out, data=data)
    if json:
        return print_json(found)
    for line in terminal.describe_export(found):
        print(line)
    return print(NOTICE)


@runs_app.command(epilog="Example: trustcxr push out/run hf://owner/name")
def push(
    run: RunFolder,
    place: Annotated[str, typer.Argument(metavar="REPO", help="hf://owner/name on a Hugging Face hub, or a folder.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository that anybody can see.")] = False,
) -> None:
    """Put a run's weights, run.yaml, figures and model card on a hub, from where `tx.load_run` reads it."""
    from trustcxr.evaluation import hub
    from trustcxr.report import model_card

    where = hub.push(run, place, model_card.render_card(run), private=not public)
    a_hub = f"; for a hub write hf://{place}" if place.count("/") == 1 and not place.startswith(("/", ".")) else ""
    kind = "" if hub.is_address(place) else f" (a folder of this machine{a_hub})"
    print(f'{run} is at {where}{kind}; tx.load_run("{where}") loads it\n{NOTICE}')
