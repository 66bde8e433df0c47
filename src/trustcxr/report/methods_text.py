"""Write methods for a paper from the recipe, the measurements and the hardware."""

from collections.abc import Mapping, Sequence
from typing import Any

from trustcxr.recipes.training_recipe import DefenceRecipe, ModelRecipe
from trustcxr.registry import ATTACKS, CORRUPTIONS, DEFENCES, SALIENCY, Effort, Method
from trustcxr.report import formatting, html
from trustcxr.report.load import Run
from trustcxr.storage import atomic, segments
from trustcxr.storage.schemas import StudyDocument

_UNSET = (None, "", False, 0)
_OMITTED = ("name", "training", "track", "tracking_uri", "healthy", "swap_share")
_NETWORK = {key: field.default for key, field in ModelRecipe.model_fields.items() if key != "weights"}
_DEFENCE = {
    k: field.default for k, field in DefenceRecipe.model_fields.items() if isinstance(field.default, str | None)
}


def write_methods(study: StudyDocument, runs: list[Run]) -> dict[str, str]:
    """Return the paragraphs of a methods section, by heading."""
    parts = _gather_parts(study, runs)
    paragraphs = {lead: html.fill_text(text, parts) for lead, text in html.read_yaml("methods.yaml").items()}
    return {lead: text for lead, text in paragraphs.items() if text}


def _gather_parts(study: StudyDocument, runs: list[Run]) -> dict[str, object]:
    recipe, data, hardware = study.recipe, study.data, study.hardware
    training = atomic.section(recipe, "training")
    models = recipe["models"] if isinstance(recipe.get("models"), list) else []
    corrupted = {entry.corruption for run in runs for entry in run.metrics.corruptions}
    severities = {entry.severity for run in runs for entry in run.metrics.corruptions if entry.severity is not None}
    versions = [f"{name} {version}" for name, version in study.versions.items() if name.lower() != "trustcxr"]
    on = (hardware.processor, formatting.plural(hardware.cores, "core") if hardware.cores else "", hardware.accelerator)
    software = f"TrustCXR {study.trustcxr}" if study.trustcxr else ""
    papers = {name: SALIENCY.get(Method.parse(name).base) for run in runs for name in run.metrics.saliency}
    methods = [_cited(formatting.method(name), entry.paper if entry else "") for name, entry in papers.items()]
    return {
        "f": formatting,
        "study": study,
        "runs": runs,
        "counts": [f"{name} {formatting.count(sum(part.values()))}" for name, part in data.counts.items() if part],
        "classes": study.classes or next((run.metrics.classes for run in runs), []),
        "added": [
            f"{each.get('path')} ({each.get('share'):.0%} of each class)"
            for each in atomic.records(atomic.section(recipe, "data"), "add")
        ],
        "masks": [f"{split} {formatting.count(n)}" for split, n in data.infection_masks.items() if n],
        "networks": [_network(model, training) for model in models],
        "training": _settings(training, {}),
        "other_precision": [
            f"{run.name} in {run.metrics.training.precision}"
            for run in runs
            if run.metrics.training.precision != run.metrics.training.precision_asked
        ],
        "defences": [_describe_defence(each, training) for each in atomic.records(recipe, "defences")],
        "attacks": _describe_attacks(runs),
        "rounded": sorted({entry.effort.name for run in runs for entry in run.attacks if entry.rounded}),
        "corruptions": [formatting.corruption(name) for name in CORRUPTIONS if name in corrupted],
        "severities": [str(severity) for severity in sorted(severities)],
        "heatmaps": list(dict.fromkeys(methods)),
        "random_weights": any(part.random_weights for run in runs for part in run.metrics.saliency.values()),
        "grouped": any(run.clean.groups is not None and run.clean.groups != run.clean.n for run in runs),
        "resamples": atomic.section(recipe, "evaluation").get("bootstrap"),
        "seeds": [str(seed) for seed in sorted({r.metrics.seed for r in runs if r.metrics.seed is not None})],
        "software": software + (f" with {', '.join(versions)}" if software and versions else ""),
        "hardware": ", ".join(part for part in on if part),
        "elsewhere": [f"{name} {where}" for name, where in trained_elsewhere(study, runs).items()],
    }


def list_options(defence: Mapping[str, object]) -> list[str]:
    """Return the options of a defence that the recipe sets."""
    entry = DEFENCES.get(str(defence.get("name")))
    names = entry.options if entry else ("epsilon",)
    return _settings({key: value for key, value in defence.items() if key in names}, _DEFENCE)


def _settings(content: Mapping[str, object], usual: Mapping[str, object]) -> list[str]:
    """Return the settings of a part of a recipe, without defaults and those switched off."""
    parts = []
    for key, value in content.items():
        switches = [content[other] for other in content if key.startswith(f"{other.removesuffix('s')}_")]
        if key in _OMITTED:
            continue
        if isinstance(value, Mapping):
            parts += _settings(value, atomic.section(usual, key))
        elif value != usual.get(key, value if value in _UNSET else None) and all(switches):
            text = formatting.join_words(map(str, value)) if isinstance(value, list | tuple) else value
            parts.append(key.replace("_", " ") + ("" if value is True else f" {text}"))
    return parts


def _network(model: object, training: Mapping[str, object]) -> str:
    if not isinstance(model, dict):
        return str(model)
    parts = [*_settings(model, _NETWORK), *_settings(atomic.section(model, "training"), training)]
    return f"{model.get('name') or formatting.DASH}" + (f" ({', '.join(parts)})" if parts else "")


def _describe_defence(defence: Mapping[str, Any], training: Mapping[str, object]) -> str:
    name, entry = defence.get("name") or formatting.DASH, DEFENCES.get(str(defence.get("name")))
    name = "standard training" if name == formatting.STANDARD else name
    name = _cited(entry.label, entry.paper) if entry and entry.paper else name
    settings = _settings({key: defence[key] for key in ("label", "background") if key in defence}, {})
    return ", ".join(
        [name, *list_options(defence), *settings, *_settings(atomic.section(defence, "training"), training)]
    )


def _describe_attacks(runs: list[Run]) -> list[str]:
    """Return each attack with its paper, surrogate and epsilons."""
    efforts: dict[tuple[Effort, str], set[float]] = {}
    for run in runs:
        for entry in run.attacks:
            efforts.setdefault((entry.effort, entry.surrogate), set()).add(entry.epsilon or 0.0)
    texts = []
    for (effort, surrogate), epsilons in efforts.items():
        cited = _cited(effort.name, ATTACKS[effort.attack].paper if effort.attack in ATTACKS else "")
        cited += f" with images of the surrogate {surrogate}" if surrogate else ""
        texts.append(f"{cited} at epsilon {formatting.join_words(formatting.epsilon(e) for e in sorted(epsilons))}")
    return texts


def _cited(label: str, paper: str) -> str:
    return f"{label} ({paper})" if paper else label


def trained_elsewhere(study: StudyDocument, runs: Sequence[Run]) -> dict[str, str]:
    """Return hardware and commits of runs that differ from those of the study."""
    hardware = study.hardware.model_dump(exclude_unset=True)
    return dict(segments.elsewhere([run.folder for run in runs], hardware, study.source))
