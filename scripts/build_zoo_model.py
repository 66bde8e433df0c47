"""Build a trained model of the zoo from its recipe: train, pack the weights in float16, audit, describe.

    python -m scripts.build_zoo_model covid-robust --data covidqu-midi --out out/zoo

Start it again to resume.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trustcxr.audit.run_audit import audit
from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.evaluation import hub, trained_models
from trustcxr.evaluation.trained_run import load_run
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.runs import run_folder
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import AuditDocument, CertifiedResult, ZooAudit, ZooEntry, ZooFigure, ZooInput
from trustcxr.storage.schemas.zoo_entry import CERTIFIED
from trustcxr.version import NOTICE, __version__


def build(name: str, data: Path, out: Path, *, description: Path | None = None) -> ZooEntry:
    """Train a model of the zoo again and audit it; write `out`/NAME.json and the run `out`/NAME; return the entry.

    `description`: a YAML file for a model that is not in the zoo yet. An interrupted build resumes. Raises UserError
    for an unknown name, a missing key, or data that do not fit the recipe.
    """
    entry = trained_models.entry(name) if description is None else _read_description(name, description)
    recipe = validate(RunRecipe, entry.recipe, f"{name}: recipe")
    trained, packed = out / "training" / name, out / name
    run_folder.train(recipe, data, trained)
    log(f"packing {name}")
    shutil.rmtree(packed, ignore_errors=True)
    packed.mkdir(parents=True)
    hub.stage(trained, packed)
    _pack_weights(packed)
    # All that follows is of the weights in float16.
    run_folder.fit_ood(packed, data)
    measure = run_folder.certify if recipe.defence.certifies else run_folder.evaluate
    figures, folder = measure(packed, data)
    atomic.write_json(packed / layout.METRICS_FILE, figures)
    shutil.rmtree(folder.parent)
    document = audit(packed, data, out / "audits" / name)
    entry = _complete(entry, packed, document, figures.certified)
    atomic.write_json(out / f"{name}.json", entry)
    return entry


def _read_description(name: str, path: Path) -> ZooEntry:
    keys = {"summary", "recipe", "licence", "data_licence", "not_for", "training_data"}
    content = atomic.read_yaml(path)
    if missing := sorted(keys - set(content)):
        raise UserError(f"{path}: {', '.join(missing)} missing. Add them.")
    return ZooEntry.model_validate({"name": name} | {key: content[key] for key in keys})


def _pack_weights(run: Path) -> None:
    """Convert the weights of a staged run to float16, and note their checksum in run.yaml."""
    path = run / layout.WEIGHTS_FILE
    state = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in load_file(path).items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise UserError(f"{run}: a weight is too large for float16. Train with a smaller learning rate.")
    save_file(state, path)
    content = dict(atomic.read_yaml(run / layout.RUN_FILE))
    atomic.write_yaml(run / layout.RUN_FILE, content | {"checksums": layout.checksums(run, content["classes"])})


def _complete(entry: ZooEntry, folder: Path, document: AuditDocument, certified: Sequence[CertifiedResult]) -> ZooEntry:
    """Return the entry with what its weights, its audit and its proofs say."""
    run, weights = load_run(folder, on="cpu"), folder / layout.WEIGHTS_FILE
    with torch.no_grad():
        logits = run.model(trained_models.synthetic_images(run.size)).double()
    entry.architecture = run.recipe.model.name
    entry.parameters = sum(parameter.numel() for parameter in run.model.parameters())
    entry.input = ZooInput(size=run.size, channels=1, range=(0.0, 1.0), resize=run.resize)
    entry.classes, entry.sha256, entry.bytes = list(run.classes), atomic.checksum(weights), weights.stat().st_size
    entry.expected_logits = [[round(float(value), 5) for value in row] for row in logits]
    clean = document.clean
    rows = [ZooFigure(attack="clean", epsilon=0.0, n=clean.n, accuracy=clean.accuracy)]
    figures = {"attack", "epsilon", "steps", "queries", "n", "accuracy"}
    rows += [ZooFigure(**row.model_dump(include=figures)) for row in document.attacks]
    rows += [ZooFigure(attack=CERTIFIED, epsilon=row.epsilon, n=row.n, accuracy=row.accuracy) for row in certified]
    entry.audit = ZooAudit(
        protocol=document.protocol,
        data=document.data.name,
        split=document.split,
        fingerprint=document.data.fingerprint,
        n=document.data.n,
        sound=document.verdict.sound,
        trustcxr=__version__,
        figures=rows,
    )
    return entry


def main() -> None:
    """Build the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a trained model; `trustcxr models` lists them")
    parser.add_argument("--data", type=Path, required=True, help="folder of images, or a list (CSV)")
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.json, the packed run NAME, its audit")
    keys = "summary, recipe, licence, data_licence, not_for, training_data"
    parser.add_argument("--description", type=Path, help=f"YAML of a new model: {keys}")
    typed = parser.parse_args()
    build(typed.name, typed.data, typed.out, description=typed.description)
    print(f"written to {typed.out / typed.name}\n{NOTICE}")


if __name__ == "__main__":
    main()
