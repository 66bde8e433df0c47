"""Audit every masked model, and write what the audit says beside the truth, as CSV.

    python -m benchmarks.masked_model_table --data PATH [--size 32] [--images 20] [--name NAME ...] > table.csv

All share one small undefended network, trained on the training images. `--images` validation images of each class are
examined. A model is believed if its measurement is called sound and a figure is more than five points above the truth.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.masked_models import MASKED_MODELS, NAME, WEIGHTS, fit_network, measure_truth, save_network
from trustcxr.audit.run_audit import audit
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError

EPSILON, CLOSE = 0.02, 0.05
BARE = "none"  # the undefended network itself
HEAD = (
    *("model", "description", "clean", "clean, truth", "worst case", "worst case, truth", "sound", "believed"),
    *("failed checks", "not checked", "met", "processor seconds"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=20, help="of each class")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--name", action="append", help="these models alone; none: the undefended network")
    parser.add_argument("--protocol", action="store_true", help="all of the protocol instead of three attacks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        classes = prepare(options.data, options.size, options.images, options.epochs, out)
        table = csv.writer(sys.stdout)
        table.writerow(HEAD)
        for name in options.name or [BARE, *MASKED_MODELS]:
            table.writerow(describe(name, classes, options.size, out, whole=options.protocol))
            sys.stdout.flush()


def prepare(data: Path, size: int, each: int, epochs: int, out: Path) -> tuple[str, ...]:
    """Train the undefended network, link the images to examine in out/images, and return the classes."""
    manifest = read_manifest(data)
    training, validation = (load_dataset(manifest, split, size) for split in ("Train", "Val"))
    images = to_pixels(torch.from_numpy(training.images.copy()))
    net = fit_network(images, torch.from_numpy(training.labels), epochs=epochs, classes=len(training.classes))
    for name, rows in validation.table.groupby("class"):
        (out / "images" / str(name)).mkdir(parents=True)
        for path in rows["path"][:each]:
            (out / "images" / str(name) / Path(path).name).symlink_to((manifest.root / path).resolve())
    examined = load_dataset(out / "images", None, size, classes=training.classes)
    examined_images = to_pixels(torch.from_numpy(examined.images.copy())), torch.from_numpy(examined.labels)
    save_network(net, examined_images, size, out / "network.pt")
    os.environ[WEIGHTS] = str(out / "network.pt")
    return training.classes


def describe(name: str, classes: tuple[str, ...], size: int, out: Path, *, whole: bool) -> list[object]:
    """Return a row of the table: the audit of one model, and its truth."""
    from benchmarks.masked_models import load_masked_model

    os.environ[NAME] = "" if name == BARE else name
    model = out / f"{name.replace(' ', '-')}.yaml"
    model.write_text(
        "python: benchmarks.masked_models:load_masked_model\n"
        f"input: {{size: {size}}}\noutput: {{kind: logits, classes: [{', '.join(classes)}]}}\n"
    )
    saved = torch.load(os.environ[WEIGHTS], weights_only=True)
    if name == BARE:
        description, truth = "The undefended network itself.", None
    else:
        masked = load_masked_model()
        description = (type(masked).__doc__ or "").splitlines()[0]
        truth = measure_truth(masked, saved["images"], saved["labels"], epsilon=EPSILON)  # type: ignore[arg-type]
    before = time.process_time()
    attacks = {} if whole else {"attacks": ("fgsm", "pgd", "worst-case"), "epsilons": (EPSILON,)}
    try:
        document = audit(model, out / "images", out / model.stem, trust_code=True, **attacks)  # type: ignore[arg-type]
    except UserError as problem:
        return [name, description, "", *(truth or ("", ""))[:1], "", *(truth or ("", ""))[1:], f"refused: {problem}"]
    spent = time.process_time() - before
    rows = [row for row in document.attacks if row.attack == "worst-case" and row.epsilon == EPSILON]
    clean, worst = document.clean.accuracy.value, rows[0].accuracy.value
    expected = (clean, worst) if truth is None else truth
    figures = ((clean, expected[0]), (worst, expected[1]))
    far = any(figure is not None and true is not None and figure - true > CLOSE for figure, true in figures)
    failed, unknown = (
        "; ".join(check.check for check in document.entry_checks if check.passed is state) for state in (False, None)
    )
    numbers = ["" if n is None else f"{n:.3f}" for n in (clean, expected[0], worst, expected[1])]
    sound, met = document.verdict.sound, "; ".join(row.question for row in document.verdict.model if row.met)
    return [name, description, *numbers, sound, sound and far, failed, unknown, met, f"{spent:.1f}"]


if __name__ == "__main__":
    main()
