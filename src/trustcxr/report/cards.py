"""The model card of a run: what a hub shows, and what goes with weights wherever they go.

Front matter and headings are those of an audit's card (`audit_page.card`); what a run knows of its own training stands
in the place of what an audit must ask.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from trustcxr.about import NOTICE, __version__
from trustcxr.catalogue import attack_said
from trustcxr.report import board, methods, words
from trustcxr.report.single_page import environment
from trustcxr.results import documents, files, folders, stretches
from trustcxr.results.documents import AttackResult, RunDocument, Share, TrainingDocument

CARD_FILE = "model_card.md"


def write(run: Path) -> Path:
    """Write model_card.md into a run's folder; its path."""
    path = run / CARD_FILE
    text = card(run)
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def card(run: Path) -> str:
    """The card of a run as Markdown, from its folder; figures where it was tested."""
    content = files.read_yaml(folders.check_run(run) / folders.RUN_FILE)
    document = documents.read_if_there(RunDocument, run / folders.METRICS_FILE) or RunDocument()
    training = documents.read_if_there(TrainingDocument, run / folders.TRAINING_FILE) or TrainingDocument()
    data, recipe = files.part(content, "data"), files.part(content, "recipe")
    defence = files.part(recipe, "defence")
    name = str(content.get("name") or run.name)
    results = figures(document.clean.accuracy, document.clean.auroc_macro, board.attacked(document))
    measured_on = {"name": data.get("root_name"), "split": document.split, "revision": document.films}
    body = (
        environment()
        .get_template("run_card.md.j2")
        .render(
            name=name,
            notice=NOTICE,
            version=__version__,
            content=content,
            recipe=recipe,
            model=files.part(recipe, "model"),
            defence=", ".join([str(defence.get("name") or "[not noted]"), *methods.options(defence)]),
            fitting=files.part(recipe, "training"),
            data=data,
            classes=content.get("classes") or [],
            checksums=files.part(content, "checksums"),
            document=document,
            training=training,
            shown=[(label, words.percent(part.value), words.between(part.ci, 1, scale=100)) for label, part in results],
            saliency=_saliency(document),
            seconds=words.seconds(training.seconds),
            source=files.part(stretches.last(content), "source"),
            hardware=files.part(stretches.last(content), "hardware"),
            made_by=files.part(stretches.last(content), "versions").get("trustcxr", ""),
            machines=stretches.machines(content),
            stretches=stretches.told(run),
            split=stretches.split_told(training.parts, training.world, training.strategy),
        )
    )
    return front(name, ["trained-by-trustcxr"], [index(name, measured_on, results)]) + as_markdown(body)


def as_markdown(rendered: str) -> str:
    """A card's body, where no character stands for another but <, for Markdown lets HTML through."""
    from markupsafe import Markup

    return str(Markup(rendered).unescape()).replace("<", "&lt;")


def front(name: str, tags: Iterable[str], indices: list[dict[str, object]]) -> str:
    """The front matter of a card, as Hugging Face's have it."""
    import yaml

    content = {
        "model_name": name,
        "tags": ["chest-x-ray", "image-classification", "trustcxr", *tags],
        "metrics": ["accuracy", "roc_auc"],
        "pipeline_tag": "image-classification",
        "model-index": indices,
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n\n"


def figures(accuracy: Share, auroc: Share, worst: AttackResult) -> list[tuple[str, Share]]:
    """The figures that a card is known by, each with its name; those that were measured."""
    measured = [("Accuracy", accuracy), ("AUROC, macro", auroc)]
    if worst.epsilon is not None:
        said = attack_said(worst.attack, worst.steps)
        measured.append((f"Accuracy under {said} at L-infinity {worst.epsilon:g}", worst.accuracy))
    return [(name, part) for name, part in measured if part.value is not None]


def index(name: str, data: Mapping[str, object], measured: Iterable[tuple[str, Share]]) -> dict[str, object]:
    """Results as Hugging Face's `model-index` has them. `data`: name, split and revision."""
    metrics = [
        {"type": "roc_auc" if label.startswith("AUROC") else "accuracy", "name": label, "value": part.value}
        for label, part in measured
    ]
    dataset = {"name": data.get("name"), "type": data.get("name")} | {k: data.get(k) for k in ("split", "revision")}
    task = {"type": "image-classification", "name": "Chest X-ray classification"}
    return {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}


def _saliency(document: RunDocument) -> list[str]:
    """A sentence a method that looks at the network: what its map may be said to show."""
    return [f"{name}: {part.verdict}" for name, part in document.saliency.items() if getattr(part, "verdict", "")]
