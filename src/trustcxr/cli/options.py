"""What is typed after a command: the options that are long or that several commands share, and how they are read."""

import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trustcxr.data.remote import is_address
from trustcxr.errors import UserError, unknown
from trustcxr.registry import ATTACKS, BACKGROUNDS, CONTROLS, CORRUPTIONS, DEFENCES, SALIENCY, format_steps

if TYPE_CHECKING:
    from trustcxr.recipes.run_recipe import Listing


def _run_there(run: Path) -> Path:
    """The folder of a run: refused at once where it is none, and not after the seconds that torch takes to load."""
    from trustcxr.storage import layout

    return run if run.is_dir() or is_address(run) else layout.check_run(run)


def is_set(model: str) -> bool:
    """Whether this is a file or code, as `trustcxr audit` takes them, and no run; UserError where nothing is there."""
    from trustcxr.storage import layout

    path, described = Path(model), Path(model).suffix in layout.MODEL_FILES
    if is_address(model) or path.is_dir() or not (path.exists() or described or ":" in model):
        _run_there(path)
        return False
    layout.check_model(model)
    return True


DATA = typer.Option(
    "--data",
    help="Folder of X-rays (COVID-QU-Ex as published, or class folders), a list (CSV), or an address such as s3://...",
)
Data = Annotated[Path, DATA]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.", callback=_run_there)]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="The data's label = the run's class, such as pneumonia=Non-COVID; repeatable."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="Of a list: covidx, nih, rsna, rsna-boxes or chexpert; or word=column, such as path='Image Index', "
        "of path, class, split, patient, group, source, view, sample_id, lung_mask and infection_mask; repeatable.",
    ),
]
Images = Annotated[Path | None, typer.Option("--images", help="Image folder of a list, if it is not the list's own.")]
_METHODS = ", ".join(name for name in SALIENCY if name not in CONTROLS)
SALIENCY_METHODS = (
    f"{_METHODS}, or as controls {', '.join(CONTROLS)}; a CAM of an earlier layer is layercam@-2 or layercam@NAME; "
    "repeatable. gradcam and layercam unless said."
)
Track = Annotated[
    str | None,
    typer.Option(help="Also follow each epoch in tensorboard or mlflow; mlflow:URI is its server, else a SQLite file."),
]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Let the model file run its maker's code.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
# --- of train ---
Defence = Annotated[
    str,
    typer.Option(help=f"How it is made robust: {', '.join(DEFENCES)}."),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of each run: another number gives other bits. Those of torch here unless said."),
]
Patience = Annotated[int | None, typer.Option(help="Epochs without a better validation figure before it stops.")]
TrainingEpsilon = Annotated[
    float, typer.Option(help="L-infinity radius of adversarial training; 0.02 is 5.1 grey levels.")
]
Background = Annotated[
    str,
    typer.Option(help=f"{', '.join(BACKGROUNDS)}; all but full need lung masks to train."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other key of the recipe, such as defence.beta=3 or model.normalisation=group; repeatable.",
    ),
]
# --- of evaluate ---
Attacks = Annotated[
    list[str] | None,
    typer.Option(help=f"{', '.join(ATTACKS)}; repeatable. fgsm and pgd unless said."),
]
Epsilons = Annotated[
    list[float] | None,
    typer.Option(help="L-infinity radius in [0, 1] (of pgd-l2 the L2 radius); repeatable. 0.02 unless said."),
]
Steps = Annotated[int | None, typer.Option(help=f"Attack steps ({format_steps()}).")]
Surrogate = Annotated[
    Path | None,
    typer.Option("--surrogate", help="Run whose adversarial images the attack transfer tries on this one."),
]
Corruptions = Annotated[list[str] | None, typer.Option(help=f"all, or of {', '.join(CORRUPTIONS)}; repeatable.")]
Severities = Annotated[
    list[int] | None, typer.Option(help="Of the corruptions, 1 to 5; repeatable. All five unless said.")
]
PlantedShortcuts = Annotated[
    bool, typer.Option("--shortcuts", help="Synthetic images again, planted shortcuts removed and moved.")
]


def tracker(typed: str | None) -> tuple[str, str]:
    """The tracker and its server from "mlflow:http://..."; none where nothing was typed."""
    name, _, uri = (typed or "none").partition(":")
    if name not in ("none", "tensorboard", "mlflow"):
        raise unknown("tracker", name, ("tensorboard", "mlflow"))
    if uri and name != "mlflow":
        raise UserError(f"--track {typed}: only mlflow has a server: --track mlflow:{uri}")
    return name, uri


# Of train: an option -> the key of the recipe that it says.
_KEYS = {
    "model": "model.name",
    "weights": "model.weights",
    "defence": "defence.name",
    "size": "data.size",
    "seed": "seed",
    "background": "training.background",
    "track": "training.track",
    "column": "data.columns",
    "images": "data.images",
    "label": "data.labels",
    **{name: f"training.{name}" for name in ("epochs", "batch_size", "learning_rate", "patience", "precision")},
    **{name: f"defence.{name}" for name in ("epsilon", "ramp", "clean_weight")},
}


def settings(context: typer.Context, given: list[str] | None) -> list[str]:
    """The --set pairs; UserError where one says what another, or another option, says: one of them would be lost."""
    typed = [name for name in _KEYS if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    said = {_KEYS[name]: f"--{name.replace('_', '-')}" for name in typed}
    for pair in given or []:
        key, _, value = pair.partition("=")
        for other, option in said.items():
            if other == key or other.startswith(f"{key}."):
                raise UserError(f"{option} and --set {key}={value} both say {other}: give one of them")
        said[key] = f"--set {key}"
    return given or []


def label_map(pairs: list[str] | None) -> dict[str, str | None]:
    """The data's label -> the run's class, from "label=class"; a label without a class is left out."""
    found: dict[str, str | None] = {}
    for pair in pairs or []:
        label, equals, name = pair.partition("=")
        if not equals or not label:
            raise UserError(f"--label {pair}: write label=class, such as pneumonia=Non-COVID; label= leaves it out")
        _once("--label", label, found)
        found[label] = name or None
    return found


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """What was typed as key=value, under the name of its option."""
    found: dict[str, str] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"{option} {pair}: write key=value, such as partition=gpu")
        _once(option, key, found)
        found[key] = value
    return found


def _once(option: str, key: str, found: Container[str]) -> None:
    if key in found:
        raise UserError(f"{option} {key}= is there twice: give it once")


def listing(columns: list[str] | None, images: Path | None) -> "Listing":
    """How a list of images is read, as typed: the name of a published list, or word=column pairs."""
    found: Listing = {}
    if images is not None:
        found["images"] = str(images)
    if not columns:
        return found
    if len(columns) == 1 and "=" not in columns[0]:
        return {**found, "columns": columns[0]}
    mapping: dict[str, str | int] = {}
    for pair in columns:
        word, equals, column = pair.partition("=")
        if not equals or not word or not column:
            raise UserError(
                f"--column {pair}: write word=column, such as path='Image Index', or one of covidx, nih, rsna, chexpert"
            )
        _once("--column", word, mapping)
        mapping[word] = int(column) if column.isdecimal() else column
    return {**found, "columns": mapping}


def print_json(document: Any) -> None:
    """One JSON document on stdout, and nothing else there."""
    from trustcxr.storage.atomic import to_json

    sys.stdout.write(to_json(document))
