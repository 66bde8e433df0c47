"""Train, evaluate, certify, explain, predict and compare from Python. The command line calls the same functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.data.remote import is_address
from trustcxr.errors import UserError
from trustcxr.evaluation import trained_models
from trustcxr.storage import layout
from trustcxr.storage.os_errors import check_present
from trustcxr.storage.schemas import AuditPair, ImageAnswer, RunDocument
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

    from trustcxr.evaluation.trained_run import Run
    from trustcxr.recipes.run_recipe import Listing
    from trustcxr.runs.run_folder import DefenceOptions

Folder = str | Path


class Answers(list[ImageAnswer]):
    """The answers for images, one each; a notebook shows them as a table. `file`: predictions.csv, if written.

    >>> import trustcxr as tx
    >>> len(tx.api.Answers().table())
    0
    """

    file: Path | None = None

    def table(self) -> "pd.DataFrame":
        """Return a row for each image: class, probabilities, whether the class survives epsilon, and doubts."""
        import pandas as pd

        return pd.DataFrame(
            {"image": answer.image, "class": answer.predicted or None}
            | answer.probabilities
            | {f"survives {name}": value for name, value in answer.survives.items()}
            | {"doubts": "; ".join(filter(None, [*answer.warnings, answer.border, answer.error, answer.left_out]))}
            for answer in self
        )

    def _repr_html_(self) -> str:
        """Return the table as HTML, for a notebook."""
        return self.table().to_html(index=False, na_rep="", float_format="{:.3f}".format) + f"<p>{NOTICE}</p>"


def load_model(
    model: "str | Path | nn.Module | Callable[..., Any]", *, on: "torch.device | str | None" = None, **options: Any
) -> "nn.Module":
    """Load a classifier as a torch module: images (B, 1, H, W) in [0, 1] to logits (B, C).

    Args:
        model: a trained model's name (`trustcxr models`), a run's folder, a model file (.yaml), a model's own file, a
            module, a function, or an address `hf://owner/name`.
        on: the device; by default the accelerator, or the CPU without one.
        options: for a model's own file, a module or a function: classes, size, channels, range, mean, std, resize,
            output, thresholds, timm, name and trust_code.

    The module has the attributes `classes` (names in the order of the logits), `size` (pixels of a side) and `name`.
    Nothing is unpickled, and no code of a file's maker runs unless it is trusted. Raises UserError if the model cannot
    be loaded, or is a table of scores.

    Example:
        >>> import torch
        >>> import trustcxr as tx
        >>> model = tx.load_model(torch.nn.Flatten(), classes=[str(n) for n in range(64)], size=8)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 64])
    """
    from trustcxr.audit.subject import load_subject

    subject = load_subject(model, on=on, **options)
    if subject.model is None:
        raise UserError(f"{model}: is a table of scores, not a model. Use tx.audit.run for it.")
    module = subject.model
    module.classes, module.size, module.name = subject.classes, subject.size, subject.name  # type: ignore[assignment]
    return module


def train(
    data: Folder,
    out: Folder,
    *,
    model: str,
    defence: "str | DefenceOptions" = "standard",
    weights: str = "imagenet",
    size: int = 224,
    seed: int = 0,
    training: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    labels: Mapping[str, str | None] | None = None,
    listing: "Listing | None" = None,
    threads: int | None = None,
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "ddp",
) -> "Run":
    """Train a run into the folder `out`, or resume it, and return it.

    Args:
        data: folder of images, or a list (CSV).
        out: folder of the run.
        model: one of the 21 networks, any timm name, or names with a + between, an ensemble.
        defence: a method's name, or its keys: `{"name": "fgsm", "epsilon": 0.02}`.
        weights: imagenet, none, or a weights file.
        size: pixels of a side.
        seed: the same seed gives the same run.
        training: keys of the recipe's training, such as `{"epochs": 10}`.
        settings: further keys as "key=value", such as "training.balanced=true".
        labels: {the data's label: the run's class}.
        listing: columns and image folder of a list.
        threads: of the processor; another number gives other bits.
        devices: GPUs that share each batch.
        nodes: machines with so many devices.
        strategy: ddp, or ddp_find_unused_parameters_true.

    Raises UserError for a wrong option, unreadable data, or a folder that holds another run.

    Example:
        >>> import tempfile
        >>> import trustcxr as tx
        >>> folder = tempfile.mkdtemp()
        >>> data = tx.data.phantom.write(folder + "/images", {"Train": 2, "Val": 2}, size=32)
        >>> run = tx.train(data, folder + "/run", model="plain3", weights="none", size=32, training={"epochs": 1})
        >>> run.name
        'plain3-standard-s0'
    """
    from trustcxr.evaluation.trained_run import load_run
    from trustcxr.runs import run_folder
    from trustcxr.training.environment import use_threads

    recipe = run_folder.recipe(
        model=model,
        weights=weights,
        defence={"name": defence} if isinstance(defence, str) else defence,
        size=size,
        seed=seed,
        training=dict(training or {}),
        data={"labels": dict(labels or {}), **(listing or {})},
        options=list(settings),
    )
    with use_threads(threads):
        run_folder.train(recipe, Path(data), Path(out), devices=devices, nodes=nodes, strategy=strategy)
    return load_run(out)


def evaluate(run: Folder, data: Folder, *, out: Folder | None = None, **options: Any) -> RunDocument:
    """Measure a run on a data set: clean, attacked, corrupted. Return metrics.json, whose `table()` has all accuracies.

    Args:
        run: a run's folder, or a trained model's name.
        data: folder of images, or a list (CSV).
        out: folder for the results; by default within the run's, or in `trustcxr-out` for a trained model.
        options: split, attacks, epsilons, steps, queries, surrogate, sweep, corruptions, severities, shortcuts, labels
            and listing, as of `runs.run_folder.evaluate`.

    The same evaluation is not measured again. Raises UserError for a wrong option or unreadable data.

    Example:
        >>> import tempfile
        >>> import trustcxr as tx
        >>> folder = tempfile.mkdtemp()
        >>> data = tx.data.phantom.write(folder + "/images", {"Test": 4}, size=32)
        >>> result = tx.evaluate("covid-certified", data, attacks=["fgsm"], out=folder + "/result")
        >>> list(result.table()["condition"])
        ['clean', 'fgsm']
    """
    from trustcxr.runs import run_folder

    return _in_folder(*run_folder.evaluate(Path(run), Path(data), out=None if out is None else Path(out), **options))


def certify_model(
    run: Folder,
    data: Folder,
    *,
    epsilons: Sequence[float] | None = None,
    method: str = "crown",
    steps: int = 10,
    neurons: int = 256,
    **options: Any,
) -> RunDocument:
    """Prove for how many images of a data set the answer cannot change within epsilon; the model is attacked too.

    Args:
        run: a run's folder, or a trained model's name, such as "covid-certified".
        data: folder of images, or a list (CSV).
        epsilons: L-infinity radii in [0, 1]; by default 0.005, 0.01 and 0.02.
        method: ibp, or crown: also CROWN if intervals fail.
        steps: gradient steps on CROWN's slopes.
        neurons: CROWN also bounds layers of at most so many ReLUs.
        options: split, labels and listing, as of `runs.run_folder.certify`.

    Return metrics.json, whose `table()` has both bounds. Raises UserError if a layer cannot be bounded.

    Example:
        >>> import tempfile
        >>> import trustcxr as tx
        >>> folder = tempfile.mkdtemp()
        >>> data = tx.data.phantom.write(folder + "/images", {"Train": 2, "Val": 2, "Test": 2}, size=32)
        >>> run = tx.train(data, folder + "/run", model="plain3", weights="none", size=32, training={"epochs": 1})
        >>> result = tx.certify_model(run.folder, data, epsilons=[0.001], method="ibp")
        >>> result.certified[0].n
        6
    """
    from trustcxr.certify.verify import effort
    from trustcxr.runs import run_folder

    chosen = effort(method, neurons=neurons, steps=steps)
    return _in_folder(*run_folder.certify(Path(run), Path(data), epsilons=epsilons, effort=chosen, **options))


def explain_model(
    model: Folder,
    data: Folder,
    *,
    out: Folder | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: "Listing | None" = None,
    finding: str | None = None,
    trust_code: bool = False,
    **options: Any,
) -> RunDocument:
    """Compare saliency maps of a model with radiologists' masks, each measure with chance.

    Args:
        model: a run's folder, a trained model's name, or a model file (.yaml).
        data: folder of images with lesion masks, or a list (CSV).
        out: folder for the results; by default within the run's. A model file needs one.
        split: by default the test split.
        labels: {the data's label: the model's class}.
        listing: columns and image folder of a list.
        finding: the one to explain, of a model file with a sigmoid for each.
        trust_code: allow the model file to run code of its author.
        options: methods, epsilon, corruptions, severity and sample.

    Return metrics.json, with the figures of each method in `saliency`. Raises UserError if no image has a mask.

    Example:
        >>> import tempfile
        >>> import trustcxr as tx
        >>> folder = tempfile.mkdtemp()
        >>> data = tx.data.phantom.write(folder + "/images", {"Train": 2, "Val": 2, "Test": 2}, size=32)
        >>> run = tx.train(data, folder + "/run", model="plain3", weights="none", size=32, training={"epochs": 1})
        >>> result = tx.explain_model(run.folder, data, methods=["gradcam"], sample=0, corruptions=[])
        >>> "gradcam" in result.saliency
        True
    """
    from trustcxr.runs import run_folder

    typed: dict[str, Any] = {"options": options, "split": split, "labels": labels, "listing": listing}
    if is_address(model) or trained_models.resolve(model).is_dir():
        if finding is not None:
            raise UserError(f"finding {finding}: a run has one class per image. Leave the finding out.")
        return _in_folder(*run_folder.explain(Path(model), Path(data), out=None if out is None else Path(out), **typed))
    if out is None:
        raise UserError(f"{model}: it has no folder for the results. Give a folder: out.")
    from trustcxr.audit import explain_external

    typed |= {"finding": finding, "trust_code": trust_code}
    return _in_folder(explain_external.explain(model, Path(data), Path(out), **typed), Path(out))


def _in_folder(document: RunDocument, folder: Path) -> RunDocument:
    document._folder = folder
    return document


def predict(
    run: Folder,
    images: Folder | Iterable[Folder],
    *,
    out: Folder = "trustcxr-out",
    epsilon: float = 0.02,
    anyway: bool = False,
    dicom: bool = False,
) -> Answers:
    """Classify image files: class, probabilities, heatmap, whether the class survives epsilon, and reasons for doubt.

    Args:
        run: a run's folder, or a trained model's name.
        images: a file or a folder, or several.
        out: folder for the heatmaps and predictions.csv.
        epsilon: L-infinity radius that the answer must survive.
        anyway: also classify what is no upright frontal chest radiograph.
        dicom: also write the answers to DICOM images as DICOM.

    An unreadable image does not stop the others. Raises UserError if a path or the run is missing.

    Example:
        >>> import tempfile
        >>> import trustcxr as tx
        >>> folder = tempfile.mkdtemp()
        >>> data = tx.data.phantom.write(folder + "/images", {"Test": 1}, size=256)
        >>> image = next(data.rglob("images/*.png"))
        >>> answers = tx.predict("covid-robust", image, out=folder, anyway=True)
        >>> answers[0].predicted in ("COVID-19", "Non-COVID", "Normal")
        True
    """
    from trustcxr.apps.dicom import studies_on_disk

    paths = [Path(path) for path in ([images] if isinstance(images, str | Path) else images)]
    check_present(paths)
    folder = trained_models.resolve(run)
    answers = Answers(
        studies_on_disk.predict(folder, paths, epsilon=epsilon, out=Path(out), objects=dicom, anyway=anyway)
    )
    if not any(answer.unwritten for answer in answers):
        answers.file = studies_on_disk.write_table(answers, Path(out))
    return answers


def compare(first: Folder, second: Folder) -> AuditPair:
    """Compare two audits of the same protocol and data, image by image; `table()` has a row for each condition.

    Raises UserError if a folder holds no audit, or the audits are not comparable.

    Example:
        >>> import tempfile
        >>> import trustcxr as tx
        >>> folder = tempfile.mkdtemp()
        >>> data = tx.data.phantom.write(folder + "/images", {"Test": 2}, size=32)
        >>> audit = tx.audit.run("covid-certified", data, protocol="exam-quick-1", out=folder + "/audit")
        >>> float(tx.compare(audit.folder, audit.folder).table()["difference"].abs().max())  # an audit with itself
        0.0
    """
    from trustcxr.audit.compare import compare as compare_audits

    return compare_audits(layout.check_audit(Path(first)), layout.check_audit(Path(second)))
