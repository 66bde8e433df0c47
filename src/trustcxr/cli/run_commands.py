"""Train and use one model: `train`, `evaluate`, `explain`, `predict` and others; web pages: `serve`, `reader-study`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option, Typer

from trustcxr.cli import options
from trustcxr.cli.options import Columns, Data, Images, Json, Labels, RunFolder, Threads, Track, TrustCode, print_json
from trustcxr.console import plural
from trustcxr.data.remote import check_exists
from trustcxr.errors import UserError
from trustcxr.registry import ATTACKS, BACKGROUNDS, CORRUPTIONS, DEFENCES, format_steps
from trustcxr.storage.os_errors import check_present, shell_quote
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    from trustcxr.storage.schemas import RunDocument

run_app, serve_app = Typer(), Typer()
_SET = "Any other key of the recipe and its value, such as defence.beta=3; repeatable."
_RADII = "L-infinity radius of the proof; repeatable. Default: 0.005, 0.01, 0.02."
_EXPLAINED = "Folder of a run, a trained model's name, or a model file (.yaml)."
_IMAGES = "Image files, folders of images, or folders of DICOM studies."
_PEER = "Also be a DICOM node, which sends its answers to this peer."
_SENDERS = "AE title of a node that may send images; repeatable. Default: the peer."
_ACCESSION = "Log the accession number of each image that is not answered."


@run_app.command(epilog="Example: trustcxr models")
def models(json: Json = False) -> None:
    """List the trained models that come with the package, and the 21 networks of the study."""
    from trustcxr import report
    from trustcxr.evaluation import trained_models
    from trustcxr.models.factory import paper_models
    from trustcxr.report.terminal import list_trained

    rows = [network._asdict() for network in paper_models()]
    entries = [trained_models.entry(name) for name in trained_models.names()]
    if json:
        return print_json({"trained": entries, "architectures": rows})
    report.print_rows("Trained models, usable as a RUN: `trustcxr predict NAME IMAGE`", list_trained(entries))
    print(*(f"{entry.name}: {entry.summary}" for entry in entries), sep="\n")
    report.print_rows("The 21 networks, untrained; any other timm name works too", rows)
    print("Also, untrained: plain3, plain5, whose answers `trustcxr certify` can prove;")
    return print("evidence-33 and similar, whose map is part of the computation of the answer.")


@run_app.command(epilog="Example: trustcxr train --data COVID-QU-Ex --model ResNet50 --defence fgsm --out out/run")
def train(
    context: Context,
    data: Data,
    model: Annotated[str, Option(help="One of `trustcxr models`, or any timm name; A+B: an ensemble.")],
    out: Annotated[Path, Option(help="Folder of the run.")],
    defence: Annotated[str, Option(help=f"Training method: {', '.join(DEFENCES)}.")] = "standard",
    weights: Annotated[str, Option(help="imagenet, none, or a weights file.")] = "imagenet",
    size: Annotated[int, Option(help="Side of the images in pixels.")] = 224,
    seed: Annotated[int, Option(help="The same seed gives the same run.")] = 0,
    epochs: Annotated[int | None, Option(help="Maximum number of epochs.")] = None,
    batch_size: Annotated[int | None, Option(help="Images per step.")] = None,
    learning_rate: Annotated[float | None, Option(help="Recipe default: 5e-4.")] = None,
    patience: Annotated[int | None, Option(help="Epochs without improvement.")] = None,
    precision: Annotated[str | None, Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    devices: Annotated[int, Option(help="GPUs that share each batch; without a GPU, processes.")] = 1,
    nodes: Annotated[int, Option(help="Machines with so many GPUs; start the same command on each.")] = 1,
    strategy: Annotated[str, Option(help="ddp, or ddp_find_unused_parameters_true.")] = "ddp",
    threads: Threads = None,
    epsilon: Annotated[float, Option(help="L-infinity radius; 0.02 is 5.1 grey levels.")] = 0.02,
    ramp: Annotated[float, Option(help="Share of the training during which epsilon grows.")] = 0.0,
    clean_weight: Annotated[float, Option(help="Weight of the loss on clean images, 0 to 1.")] = 0.0,
    background: Annotated[str, Option(help=f"{', '.join(BACKGROUNDS)}; needs lung masks, but for full.")] = "full",
    set_: Annotated[list[str] | None, Option("--set", help=_SET)] = None,
    track: Track = None,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
) -> None:
    """Train one run. Start it again to resume from the last epoch."""
    from trustcxr import api
    from trustcxr.report.terminal import describe_training

    training = {name: context.params[name] for name in options.KEYS["training"] if context.params[name] is not None}
    run = api.train(
        data,
        out,
        model=model,
        weights=weights,
        defence={"name": defence, "epsilon": epsilon, "ramp": ramp, "clean_weight": clean_weight},
        size=size,
        seed=seed,
        training=training | options.parse_tracker(track),
        settings=options.check_settings(context, set_),
        **options.parse_data(label, column, images),
        threads=threads,
        devices=devices,
        nodes=nodes,
        strategy=strategy,
    )
    print(f"{out}: {describe_training(run.training, run.recipe.defence.at_epsilon)}")
    print(f"next: trustcxr evaluate {shell_quote(out)} --data {shell_quote(data)}")


@run_app.command(epilog="Example: trustcxr evaluate out/run --data COVID-QU-Ex --attack pgd --epsilon 0.02")
def evaluate(
    run: Annotated[Path, Argument(metavar="RUN", help=options.RUN)],
    data: Data,
    split: Annotated[str | None, Option(help="Split to test on. Default: the test split of the run.")] = None,
    attack: Annotated[list[str] | None, Option(help=f"Repeatable: {', '.join(ATTACKS)}. Default: fgsm, pgd.")] = None,
    epsilon: Annotated[list[float] | None, Option(help="Radius in [0, 1]; repeatable. Default: 0.02.")] = None,
    steps: Annotated[int | None, Option(help=f"Attack steps ({format_steps()}).")] = None,
    queries: Annotated[int | None, Option(help="For square, also in worst-case. Default: 1000.")] = None,
    surrogate: Annotated[Path | None, Option(help="Run that the attack transfer uses.")] = None,
    sweep: Annotated[bool, Option("--sweep", help="Nine epsilons from 0 to 0.3: the whole curve.")] = False,
    corruption: Annotated[list[str] | None, Option(help=f"all, or {', '.join(CORRUPTIONS)}; repeatable.")] = None,
    severity: Annotated[list[int] | None, Option(help="Of corruptions, 1 to 5; repeatable. Default: all.")] = None,
    shortcuts: Annotated[bool, Option("--shortcuts", help="Also move planted shortcuts.")] = False,
    out: Annotated[Path | None, Option(help="Folder for the results. Default: within the run's folder.")] = None,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Test a run on any data set: clean, attacked, corrupted. Writes predictions.parquet and metrics.json."""
    if options.is_external(str(run)):
        command = f"trustcxr audit {shell_quote(run)} --data {shell_quote(data)} --out DIR"
        raise UserError(f"{run}: not the folder of a run. To examine any other model: {command}")
    if surrogate is None:  # else the attacks that use it are checked first
        check_exists(data)
    from trustcxr import api, report
    from trustcxr.report import terminal as terminal_lines

    document = api.evaluate(
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
        **options.parse_data(label, column, images),
        out=out,
    )
    if json:
        return print_json(document)
    for note in document.notes:
        print(f"NOTE: {note}")
    title = f"{document.run} on {document.split} ({plural(document.clean.n or 0, 'image')})"
    report.print_rows(title, terminal_lines.list_accuracies(document))
    return _print_end(document, terminal_lines.describe_metrics(document))


@run_app.command(epilog="Example: trustcxr certify out/run --data COVID-QU-Ex --epsilon 0.005 --epsilon 0.02")
def certify(
    run: RunFolder,
    data: Data,
    epsilon: Annotated[list[float] | None, Option(help=_RADII)] = None,
    split: Annotated[str | None, Option(help="Split to certify. Default: the test split of the run.")] = None,
    method: Annotated[str, Option(help="ibp, or crown: also CROWN if intervals fail.")] = "crown",
    steps: Annotated[int, Option(help="Gradient steps on CROWN's slopes, for tighter bounds.")] = 10,
    neurons: Annotated[int, Option(help="CROWN also bounds layers of at most so many ReLUs.")] = 256,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Prove for how many images the answer cannot change within epsilon."""
    check_exists(data)  # before what takes seconds to load
    from trustcxr import api, report
    from trustcxr.report.load import Run
    from trustcxr.report.tables.robustness import SCOPE, proved

    document = api.certify_model(
        run,
        data,
        epsilons=epsilon,
        method=method,
        steps=steps,
        neurons=neurons,
        split=split,
        **options.parse_data(label, column, images),
    )
    if json:
        return print_json(document)
    if table := proved([Run(document, document.folder or run, [])]):
        report.print_table(table)
    return _print_end(document, [SCOPE] if table else [])


@run_app.command(epilog="Example: trustcxr explain out/run --data COVID-QU-Ex")
def explain(
    model: Annotated[str, Argument(help=_EXPLAINED, callback=options.resolve_name)],
    data: Data,
    out: Annotated[Path | None, Option(help="Folder for the results. Default: within the folder of a run.")] = None,
    method: Annotated[list[str] | None, Option(help=options.SALIENCY_METHODS)] = None,
    split: Annotated[str | None, Option(help="Split to explain. Default: the test split.")] = None,
    epsilon: Annotated[float, Option(help="Radius of FGSM and PGD, for stability.")] = 0.02,
    corruption: Annotated[list[str] | None, Option(help="Corruption for stability; repeatable. Default: all.")] = None,
    severity: Annotated[int, Option(help="Severity of the corruptions, 1 to 5.")] = 3,
    sample: Annotated[int, Option(help="Images for faithfulness, sanity and PGD; 0: none.")] = 32,
    finding: Annotated[str | None, Option(help="The finding to explain, for a model with a sigmoid each.")] = None,
    trust_code: TrustCode = False,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Compare saliency maps of a run or of a model file with radiologists' masks, each measure with chance."""
    if options.is_external(model) and out is None:
        raise UserError(f"explain {model}: say --out DIR; see trustcxr explain --help")
    check_exists(data)  # before what takes seconds to load
    from trustcxr import api

    names: dict[str, Any] = {"methods": method, "corruptions": "all" if "all" in (corruption or ()) else corruption}
    document = api.explain_model(
        model,
        data,
        out=out,
        split=split,
        **options.parse_data(label, column, images),
        finding=finding,
        trust_code=trust_code,
        epsilon=epsilon,
        severity=severity,
        sample=sample,
        **{key: value for key, value in names.items() if value is not None},
    )
    if json:
        return print_json(document)
    from trustcxr import report
    from trustcxr.explain.saliency_summary import SURVIVES
    from trustcxr.report.load import Run
    from trustcxr.report.tables.saliency import least_lesion_effects, lesion_effects
    from trustcxr.report.terminal import describe_saliency, list_saliency

    for name, part in document.saliency.items():
        report.print_rows(f"{document.run}, {name}: {plural(part.n or 0, 'annotated image')}", list_saliency(part))
        for line in describe_saliency(part):
            print(f"  {line}")
    if document.lesions:
        runs = [Run(document, document.folder or Path(), [])]
        for table in (least_lesion_effects(runs), lesion_effects(runs)):
            report.print_table(table)
    return _print_end(document, hidden=SURVIVES)  # already printed for each map


def _print_end(document: "RunDocument", lines: Sequence[str] = (), hidden: str = "") -> None:
    """Print lines, the alarms except for those of the kind `hidden`, and the folder."""
    alarms = [f"ALARM: {alarm.text}" for alarm in document.alarms if alarm.kind != hidden]
    print(*lines, *alarms, f"written to {document.folder}\n{NOTICE}", sep="\n")


@run_app.command(epilog="Example: trustcxr predict out/run chest.png")
def predict(
    run: RunFolder,
    images: Annotated[list[Path], Argument(metavar="IMAGE...", help=_IMAGES)],
    epsilon: Annotated[float, Option(help="L-infinity radius that the answer must survive.")] = 0.02,
    out: Annotated[Path, Option(help="Folder for the heatmaps and predictions.csv.")] = Path("trustcxr-out"),
    anyway: Annotated[bool, Option("--anyway", help="Also classify what is no upright frontal chest image.")] = False,
    dicom: Annotated[bool, Option("--dicom", help="Also write DICOM: heatmap and structured report.")] = False,
    json: Json = False,
) -> None:
    """Classify images: probabilities, a heatmap PNG, every reason for doubt, and if the answer survives epsilon.

    An image that is no upright frontal chest radiograph gets no class. An answer survives if neither FGSM nor PGD-20
    finds another class within epsilon. Heatmaps never replace other files. In a folder, all images are classified, and
    other DICOM files are named. An unreadable image does not stop the others; a full disk does.
    """
    check_present(images)
    from trustcxr import api
    from trustcxr.report import terminal

    answers = api.predict(run, images, out=out, epsilon=epsilon, anyway=anyway, dicom=dicom)
    if json:
        print_json({"notice": NOTICE, "epsilon": epsilon, "images": answers})
    else:
        lines = [line for answer in answers for line in terminal.describe_answer(answer)]
        lines += [f"all answers: {answers.file}"] if answers.file is not None else []
        print(*lines, NOTICE, sep="\n")
    if refused := terminal.describe_failures(answers):
        raise UserError(refused)


@run_app.command(epilog="Example: trustcxr export out/run --format onnx --out run.onnx --data COVID-QU-Ex")
def export(
    run: RunFolder,
    out: Annotated[Path | None, Option(help="File, .onnx or .pt2. Default: within the run.")] = None,
    format: Annotated[str, Option(help="onnx or torch-export.")] = "onnx",
    data: Annotated[Path | None, Option(help="Images to compare it on. Default: synthetic ones.")] = None,
    json: Json = False,
) -> None:
    """Export a run as one file for other programs; the outputs are first compared with those of the run."""
    if data is not None:
        check_exists(data)
    from trustcxr.audit import export_run
    from trustcxr.report import terminal

    document = export_run.export(run, format, out, data=data)
    if json:
        return print_json(document)
    return print(*terminal.describe_export(document), NOTICE, sep="\n")


@run_app.command(epilog="Example: trustcxr push out/run hf://owner/name")
def push(
    run: RunFolder,
    target: Annotated[str, Argument(metavar="REPO", help="hf://owner/name on a Hugging Face hub, or a folder.")],
    public: Annotated[bool, Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Upload weights, run.yaml, figures and model card of a run to a hub. `tx.load_run` loads it from there."""
    from trustcxr.evaluation import hub
    from trustcxr.report import model_card

    address = hub.push(run, target, model_card.render_card(run), private=not public)
    looks_like_hub = target.count("/") == 1 and not target.startswith(("/", "."))
    hint = f"; for a hub write hf://{target}" if looks_like_hub else ""
    kind = "" if hub.is_address(target) else f" (a folder of this machine{hint})"
    print(f'{run} is at {address}{kind}; tx.load_run("{address}") loads it\n{NOTICE}')


@run_app.command(epilog="Example: trustcxr fit-ood out/quick/runs/resnet18-fgsm-s0 --data COVID-QU-Ex")
def fit_ood(
    run: RunFolder, data: Data, label: Labels = None, column: Columns = None, images: Images = None, json: Json = False
) -> None:
    """Fit a detector of images unlike the training images, so that predict and serve warn of them.

    Needs the data that the run was trained on. The threshold accepts 95 % of the validation images. The share of test
    images that it rejects is printed. A study fits it by itself.
    """
    from trustcxr.report.terminal import describe_ood_fit
    from trustcxr.runs import run_folder

    document = run_folder.fit_ood(run, data, **options.parse_data(label, column, images))
    if json:
        return print_json(document)
    return print(f"{describe_ood_fit(document)}\nwritten to {run}\n{NOTICE}")


@serve_app.command(epilog="Example: trustcxr serve out/quick/runs/resnet18-fgsm-s0")
def serve(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Run folders or trained models; two are compared.")],
    host: Annotated[str, Option(help="Address to listen on. Other machines need a token.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any free port.")] = 8000,
    workers: Annotated[int | None, Option(min=1, max=64, help="Processes that answer.")] = None,
    most_megabytes: Annotated[int, Option(min=1, max=1024, help="Largest file that is accepted.")] = 64,
    dicom: Annotated[str | None, Option(metavar="TITLE@HOST:PORT", help=_PEER)] = None,
    dicom_from: Annotated[list[str] | None, Option(help=_SENDERS)] = None,
    dicom_title: Annotated[str | None, Option(help="AE title of this node.", show_default="TRUSTCXR")] = None,
    dicom_host: Annotated[str | None, Option(help="Address of this node.", show_default="127.0.0.1")] = None,
    dicom_port: Annotated[int | None, Option(min=0, max=65535, help="0: any free port.", show_default="11112")] = None,
    dicom_log_accession: Annotated[bool, Option("--dicom-log-accession", help=_ACCESSION)] = False,
) -> None:
    """Start a page, and its API, that answers for an image: heatmaps, perturbations. No image is stored.

    Other machines need a token: the value of TRUSTCXR_TOKEN, or a random one, which is printed.
    """
    from trustcxr.apps.serve import server
    from trustcxr.apps.serve.dicom_node import NodeOptions
    from trustcxr.apps.serve.worker import Limits

    typed = {"title": dicom_title, "host": dicom_host, "port": dicom_port, "log_accession": dicom_log_accession or None}
    own = {key: value for key, value in typed.items() if value is not None}
    if dicom is None and (unused := [*(["from"] if dicom_from else []), *own]):
        option = f"--dicom-{unused[0].replace('_', '-')}"
        raise UserError(f"{option} needs --dicom TITLE@HOST:PORT, the peer that gets the answers")
    node = None if dicom is None else NodeOptions.from_peer(dicom, callers=tuple(dicom_from or ()), **own)
    limits = {"most_bytes": most_megabytes << 20} | ({} if workers is None else {"workers": workers})
    server.serve([options.resolve_run(run) for run in runs], host=host, port=port, limits=Limits(**limits), dicom=node)


@serve_app.command(
    epilog="Example: trustcxr reader-study out/quick --data COVID-QU-Ex --arm resnet18-standard-s0 "
    "--arm resnet18-fgsm-s0 --reader R1 --reader R2"
)
def reader_study(
    study: Annotated[Path, Argument(metavar="STUDY", help="Folder of a study, or of one run.")],
    arm: Annotated[list[str] | None, Option(metavar="RUN[:METHOD]", help="Maps to show; one to three times.")] = None,
    data: Annotated[Path | None, Option(help="Data for new maps. Default: the saved maps.")] = None,
    images: Annotated[int | None, Option(min=1, max=500, help="Number of random images. Default: 30.")] = None,
    reader: Annotated[list[str] | None, Option(metavar="NAME", help="Pseudonym of a reader; repeatable.")] = None,
    seed: Annotated[int | None, Option(min=0, help="Seed of the random images. Default: 0.")] = None,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any free port.")] = 8001,
    results: Annotated[bool, Option("--results", help="Write tables of the answers so far.")] = False,
) -> None:
    """Start a blinded reader study: radiologists mark the finding, then rank and rate heatmaps of one to three models.

    Each reader has a private link and resumes there. STUDY/reader/ holds the answers, and which map is of which model.
    """
    from trustcxr.apps.reader import reader_study

    typed = {"arm": arm, "data": data, "images": images, "reader": reader, "seed": seed}
    if results and (option := next((key for key, value in typed.items() if value is not None), None)):
        raise UserError(f"--{option} and --results: tables are of a study as it is. Leave one of them out.")
    if results:
        return print(*reader_study.write_results(study), NOTICE, sep="\n")
    chosen = reader_study.ReaderOptions(arms=arm or (), data=data, images=images, seed=seed)
    return reader_study.serve(study, chosen, reader or (), host=host, port=port)
