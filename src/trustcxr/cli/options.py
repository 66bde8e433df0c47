"""Command-line options that several commands share, and how their values are parsed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option

from trustcxr.data.remote import is_address
from trustcxr.errors import UserError
from trustcxr.evaluation import trained_models
from trustcxr.registry import BASELINE_MAPS, SALIENCY
from trustcxr.storage import layout
from trustcxr.storage.atomic import to_json

if TYPE_CHECKING:
    from trustcxr.recipes.run_recipe import Listing


def resolve_run(run: Path) -> Path:
    """Return the folder of a run or of a trained model. Checked here because loading torch takes seconds."""
    if run.is_dir() or is_address(run):
        return run
    return layout.check_run(trained_models.resolve(run))


def resolve_name(model: str) -> str:
    """Return the folder of a trained model if `model` is its name, else `model`."""
    trained_models.check_name(model)
    return str(trained_models.fetch(model)) if trained_models.is_name(model) else model


def is_external(model: str) -> bool:
    """Return True for a model file or code, and False for a run. Raises UserError if there is neither."""
    path, is_model_file = Path(model), Path(model).suffix in layout.MODEL_FILES
    if is_address(model) or path.is_dir() or not (path.exists() or is_model_file or ":" in model):
        resolve_run(path)
        return False
    layout.check_model(model)
    return True


_DATA = "Folder of images (COVID-QU-Ex as published, or class folders), a list (CSV), or an address such as s3://..."
DATA = Option("--data", help=_DATA)
Data = Annotated[Path, DATA]
RUN = "Folder of a run, a trained model's name, or hf://owner/name."
RunFolder = Annotated[Path, Argument(metavar="RUN", help=RUN, callback=resolve_run)]
_LABELS = "The data's label = the run's class, such as pneumonia=Non-COVID; repeatable. Nothing after =: leave it out."
Labels = Annotated[list[str] | None, Option("--label", help=_LABELS)]
_COLUMNS = (
    "For a list: covidx, nih, rsna, rsna-boxes or chexpert; or word=column, such as path='Image Index'. "
    "Words: path, class, split, patient, group, source, view, sample_id, lung_mask, infection_mask; repeatable."
)
Columns = Annotated[list[str] | None, Option("--column", help=_COLUMNS)]
Images = Annotated[Path | None, Option("--images", help="Image folder of a list. Default: the folder of the list.")]
SALIENCY_METHODS = (
    f"{', '.join(name for name in SALIENCY if name not in BASELINE_MAPS)}, or as baseline maps "
    f"{', '.join(BASELINE_MAPS)}; a CAM of an earlier layer is layercam@-2 or layercam@NAME; repeatable. "
    "Default: gradcam and layercam."
)
_THREADS = "Threads of each run. Another number gives slightly different figures. Default: torch's number here"
Threads = Annotated[int | None, Option(help=f"{_THREADS}.")]
StudyThreads = Annotated[int | None, Option(help=f"{_THREADS}; 1 with --jobs 2, --cpus with --engine.")]
_TRACK = "Log each epoch to tensorboard or mlflow. mlflow:URI names its server; without one: an SQLite file."
Track = Annotated[str | None, Option(help=_TRACK)]
TrustCode = Annotated[bool, Option("--trust-code", help="Allow the model file to run code of its author.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout, and nothing else there.")]

# Options of `train` that set a key of the recipe, by the key's part.
KEYS = {
    "model": ("weights",),
    "data": ("size", "images"),
    "training": ("epochs", "batch_size", "learning_rate", "patience", "precision", "background", "track"),
    "defence": ("epsilon", "ramp", "clean_weight"),
}
_KEYS = {name: f"{part}.{name}" for part, names in KEYS.items() for name in names}
_KEYS |= {"seed": "seed", "model": "model.name", "defence": "defence.name"}
_KEYS |= {"column": "data.columns", "label": "data.labels"}


def check_settings(context: Context, settings: list[str] | None) -> list[str]:
    """Return the --set pairs. Raises UserError if two options set the same key of the recipe."""
    typed = [name for name in _KEYS if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    option_of_key = {_KEYS[name]: f"--{name.replace('_', '-')}" for name in typed}
    for pair in settings or []:
        key, _, value = pair.partition("=")
        for other, option in option_of_key.items():
            if other == key or other.startswith(f"{key}."):
                raise UserError(f"{option} and --set {key}={value} both say {other}: give one of them")
        option_of_key[key] = f"--set {key}"
    return settings or []


def parse_tracker(text: str | None) -> dict[str, str]:
    """Return the keys of a recipe from "mlflow:http://...": the tracker and its server; empty without one."""
    name, _, uri = (text or "").partition(":")
    return {"track": name, "tracking_uri": uri} if name else {}


def parse_data(label: list[str] | None, column: list[str] | None, images: Path | None) -> dict[str, Any]:
    """Return how to read data, as `labels` and `listing` of the Python calls. A label without a class is left out."""
    hint = "write label=class, such as pneumonia=Non-COVID; label= leaves it out"
    labels = {name: known or None for name, known in parse_pairs("--label", label, hint).items()}
    return {"labels": labels, "listing": parse_listing(column, images)}


def parse_pairs(option: str, pairs: Sequence[str] | None, hint: str) -> dict[str, str]:
    """Return {key: value} from the key=value pairs of an option. Raises UserError, with the hint, for any other."""
    result: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"{option} {pair}: {hint}")
        if key in result:
            raise UserError(f"{option} {key}= is there twice: give it once")
        result[key] = value
    return result


def parse_listing(columns: list[str] | None, images: Path | None) -> "Listing":
    """Return how to read a list of images: the name of a published list, or {word: column}."""
    listing: Listing = {} if images is None else {"images": str(images)}
    if not columns:
        return listing
    if len(columns) == 1 and "=" not in columns[0]:
        return {**listing, "columns": columns[0]}
    hint = "write word=column, such as path='Image Index', or one of covidx, nih, rsna, chexpert"
    mapping = parse_pairs("--column", columns, hint)
    if empty := next((word for word, column in mapping.items() if not column), None):
        raise UserError(f"--column {empty}=: {hint}")
    numbered = {word: int(column) if column.isdecimal() else column for word, column in mapping.items()}
    return {**listing, "columns": numbered}


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(to_json(document))
