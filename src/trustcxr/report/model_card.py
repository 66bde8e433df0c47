"""Write the model card of a run for a hub; front matter and headings are shared with an audit's card."""

from collections.abc import Mapping
from pathlib import Path

from trustcxr.report import formatting, load, methods_text
from trustcxr.report.html import load_templates
from trustcxr.storage import atomic, evaluations, layout, schemas, segments
from trustcxr.storage.schemas import RunDocument, Share, TrainingDocument

CARD_FILE = "model_card.md"
Results = list[tuple[str, Share]]


def render_card(run: Path) -> str:
    """Return the card of a run as Markdown, with its figures if it was tested."""
    content = atomic.read_yaml(layout.check_run(run) / layout.RUN_FILE)
    measured = evaluations.own_figures(run)
    document = RunDocument() if measured is None else measured.document
    training = schemas.read_if_there(TrainingDocument, run / layout.TRAINING_FILE) or TrainingDocument()
    data, recipe = atomic.section(content, "data"), atomic.section(content, "recipe")
    defence, segment = atomic.section(recipe, "defence"), segments.last_segment(content)
    name = str(content.get("name") or run.name)
    results = list_results(document)
    measured_on = {"name": data.get("root_name"), "split": document.split, "revision": document.images}
    parts = {
        "name": name,
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
    return fill_card("run_card.md.j2", parts, name, "trained-by-trustcxr", measured_on, results)


def fill_card(
    template: str, parts: Mapping[str, object], name: str, tag: str, data: Mapping[str, object], results: Results
) -> str:
    """Return a card: front matter with results as on Hugging Face, then the template.

    `data`: name, split and revision. In the body < is escaped, since Markdown passes HTML on.
    """
    import yaml

    metrics = [
        {"type": "roc_auc" if label.startswith("AUROC") else "accuracy", "name": label, "value": part.value}
        for label, part in results
    ]
    dataset = {"name": data.get("name"), "type": data.get("name")} | {k: data.get(k) for k in ("split", "revision")}
    task = {"type": "image-classification", "name": "Chest X-ray classification"}
    content = {
        "model_name": name,
        "tags": ["chest-x-ray", "image-classification", "trustcxr", tag],
        "metrics": ["accuracy", "roc_auc"],
        "pipeline_tag": "image-classification",
        "model-index": [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}],
    }
    front = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    body = load_templates().get_template(template).render(parts)
    return f"---\n{front}---\n\n" + body.replace("<", "&lt;")


def list_results(document: RunDocument) -> Results:
    """Return the main figures that were measured, by name."""
    worst = load.find_worst_attack(document)
    measured = [("Accuracy", document.clean.accuracy), ("AUROC, macro", document.clean.auroc_macro)]
    if worst.epsilon is not None:
        measured.append((f"Accuracy under {worst.effort.name} at L-infinity {worst.epsilon:g}", worst.accuracy))
    return [(name, part) for name, part in measured if part.value is not None]
