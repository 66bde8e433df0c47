"""Write the model card of a run for a hub; front matter and headings are shared with an audit's card."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from trustcxr.report import formatting, leaderboard, methods_text
from trustcxr.report.html import load_templates
from trustcxr.storage import atomic, evaluations, layout, schemas, segments
from trustcxr.storage.schemas import AttackResult, RunDocument, Share, TrainingDocument
from trustcxr.version import NOTICE, __version__

CARD_FILE = "model_card.md"


def write(run: Path) -> Path:
    """Write model_card.md into a run's folder; return its path."""
    path = run / CARD_FILE
    atomic.write_text(path, render_card(run))
    return path


def render_card(run: Path) -> str:
    """Return the card of a run as Markdown, with its figures if it was tested."""
    content = atomic.read_yaml(layout.check_run(run) / layout.RUN_FILE)
    measured = evaluations.own_figures(run)
    document = RunDocument() if measured is None else measured.document
    training = schemas.read_if_there(TrainingDocument, run / layout.TRAINING_FILE) or TrainingDocument()
    data, recipe = atomic.section(content, "data"), atomic.section(content, "recipe")
    defence, segment = atomic.section(recipe, "defence"), segments.last_segment(content)
    name = str(content.get("name") or run.name)
    results = list_results(document.clean.accuracy, document.clean.auroc_macro, leaderboard.find_worst_attack(document))
    measured_on = {"name": data.get("root_name"), "split": document.split, "revision": document.images}
    parts = {
        "name": name,
        "notice": NOTICE,
        "version": __version__,
        "content": content,
        "recipe": recipe,
        "model": atomic.section(recipe, "model"),
        "defence": ", ".join([str(defence.get("name") or "[not recorded]"), *methods_text.list_options(defence)]),
        "fitting": atomic.section(recipe, "training"),
        "data": data,
        "classes": content.get("classes") or [],
        "checksums": atomic.section(content, "checksums"),
        "document": document,
        "training": training,
        "shown": [
            (label, formatting.percent(part.value), formatting.range_text(part.ci, 1, scale=100))
            for label, part in results
        ],
        "saliency": [f"{method}: {part.verdict}" for method, part in document.saliency.items() if part.verdict],
        "seconds": formatting.seconds(training.seconds),
        "source": atomic.section(segment, "source"),
        "hardware": atomic.section(segment, "hardware"),
        "trustcxr": atomic.section(segment, "versions").get("trustcxr", ""),
        "machines": segments.machines(content),
        "segments": segments.describe_segments(run),
        "split": segments.describe_split(training.parts, training.world, training.strategy),
    }
    body = load_templates().get_template("run_card.md.j2").render(parts)
    index = index_results(name, measured_on, results)
    return front_matter(name, ["trained-by-trustcxr"], [index]) + as_markdown(body)


def as_markdown(rendered: str) -> str:
    """Return a card's body with < escaped, since Markdown passes HTML on."""
    return rendered.replace("<", "&lt;")


def front_matter(name: str, tags: Iterable[str], indices: list[dict[str, object]]) -> str:
    """Return the front matter of a card as on Hugging Face."""
    import yaml

    content = {
        "model_name": name,
        "tags": ["chest-x-ray", "image-classification", "trustcxr", *tags],
        "metrics": ["accuracy", "roc_auc"],
        "pipeline_tag": "image-classification",
        "model-index": indices,
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n\n"


def list_results(accuracy: Share, auroc: Share, worst: AttackResult) -> list[tuple[str, Share]]:
    """Return the main figures that were measured, by name."""
    measured = [("Accuracy", accuracy), ("AUROC, macro", auroc)]
    if worst.epsilon is not None:
        measured.append((f"Accuracy under {worst.effort.name} at L-infinity {worst.epsilon:g}", worst.accuracy))
    return [(name, part) for name, part in measured if part.value is not None]


def index_results(name: str, data: Mapping[str, object], measured: Iterable[tuple[str, Share]]) -> dict[str, object]:
    """Return results as Hugging Face's `model-index`. `data`: name, split and revision."""
    metrics = [
        {"type": "roc_auc" if label.startswith("AUROC") else "accuracy", "name": label, "value": part.value}
        for label, part in measured
    ]
    dataset = {"name": data.get("name"), "type": data.get("name")} | {k: data.get(k) for k in ("split", "revision")}
    task = {"type": "image-classification", "name": "Chest X-ray classification"}
    return {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
