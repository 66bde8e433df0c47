"""Write methods for a paper from the recipe, the measurements and the hardware."""

from collections.abc import Mapping, Sequence

from trustcxr.recipes.training_recipe import DefenceRecipe, ModelRecipe
from trustcxr.registry import ATTACKS, CORRUPTIONS, DEFENCES, SALIENCY, Effort, Method
from trustcxr.report import formatting
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
    parts = {
        "Data": _data(study, runs),
        "Networks and training": _training(study, runs),
        "Robust training": _defences(study),
        "Attacks and corruptions": _attacks(runs),
        "Heatmaps": _heatmaps(runs),
        "Statistics": _statistics(study, runs),
        "Software and hardware": _machine(study, runs),
    }
    return {lead: text for lead, text in parts.items() if text}


def list_options(defence: Mapping[str, object]) -> list[str]:
    """Return the options of a defence that the recipe sets."""
    entry = DEFENCES.get(str(defence.get("name")))
    names = entry.options if entry else ("epsilon",)
    return _settings({key: value for key, value in defence.items() if key in names}, _DEFENCE)


def _data(study: StudyDocument, runs: list[Run]) -> str:
    data = study.data
    counts = [f"{split} {formatting.count(sum(numbers.values()))}" for split, numbers in data.counts.items() if numbers]
    classes = study.classes or next((run.metrics.classes for run in runs), [])
    if not counts and not classes:
        return ""
    text = f"Chest X-rays of {data.root_name or 'the data set'}"
    text += f" ({', '.join(counts)} images)" if counts else ""
    text += f", classes {formatting.join_words(classes)}" if classes else ""
    added = [each for each in _list(atomic.section(study.recipe, "data").get("add")) if isinstance(each, dict)]
    if added:
        names = formatting.join_words(f"{each.get('path')} ({each.get('share'):.0%} of each class)" for each in added)
        text += f"; also trained on images of {names}"
    if data.size:
        text += f"; one grey channel with values from 0 to 1, resized to {data.size} × {data.size} pixels"
    masks = [f"{split} {formatting.count(n)}" for split, n in data.infection_masks.items() if n]
    text += f". Infection masks: {', '.join(masks)}" if masks else ""
    text += f". Fingerprint of the images: {data.fingerprint}" if data.fingerprint else ""
    return text + "."


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


def _training(study: StudyDocument, runs: list[Run]) -> str:
    training = atomic.section(study.recipe, "training")
    names = [name for name in (_network(model, training) for model in _list(study.recipe.get("models"))) if name]
    if not names:
        return ""
    text = f"{formatting.capital(formatting.plural(len(names), 'network'))}: {'; '.join(names)}."
    parts = _settings(training, {})
    text += f" Training: {', '.join(parts)}." if parts else ""
    other = [run for run in runs if run.metrics.training.precision != run.metrics.training.precision_asked]
    if other:
        used = ", ".join(f"{run.name} in {run.metrics.training.precision}" for run in other)
        text += f" Other precision than in the recipe, which the machine does not support: {used}."
    chosen = study.selection
    if chosen.ranking and chosen.split:
        by = formatting.measure(chosen.by or "accuracy")
        text += f" The best {formatting.count(chosen.count)} by {by} on the split {chosen.split}, not on test images, "
        text += "were also trained robustly."
    return text


def _defences(study: StudyDocument) -> str:
    training = atomic.section(study.recipe, "training")
    parts = []
    for defence in _list(study.recipe.get("defences")):
        if not isinstance(defence, dict):
            continue
        entry = DEFENCES.get(str(defence.get("name")))
        name = str(defence.get("name") or formatting.DASH)
        name = {formatting.STANDARD: "standard training"}.get(name, name)
        name = _cited(entry.label, entry.paper) if entry and entry.paper else name
        rest = {key: defence[key] for key in ("label", "background") if key in defence}
        settings = _settings(rest, {}) + _settings(atomic.section(defence, "training"), training)
        parts.append(", ".join([name, *list_options(defence), *settings]))
    each = "Each of the chosen networks" if study.selection.ranking else "Each network"
    return f"{each} had standard training and {'; '.join(parts)}." if parts else ""


def _attacks(runs: list[Run]) -> str:
    efforts: dict[tuple[Effort, str], set[float]] = {}
    for run in runs:
        for entry in run.attacks:
            efforts.setdefault((entry.effort, entry.surrogate), set()).add(entry.epsilon or 0.0)
    parts = []
    for (effort, surrogate), epsilons in efforts.items():
        cited = _cited(effort.name, ATTACKS[effort.attack].paper if effort.attack in ATTACKS else "")
        cited += f" with images of the surrogate {surrogate}" if surrogate else ""
        parts.append(f"{cited} at epsilon {formatting.join_words(formatting.epsilon(e) for e in sorted(epsilons))}")
    text = ""
    if parts:
        text = f"Accuracy was measured under {'; '.join(parts)}. Epsilon is the largest change of a pixel, on a scale "
        text += "from 0 to 1 (L-infinity, except for L2 attacks); perturbed images are clamped to [0, 1]."
    rounded = {entry.effort.name for run in runs for entry in run.attacks if entry.rounded}
    if rounded:
        text += f" Under {formatting.join_words(sorted(rounded))} an image counts as floats or rounded to an 8-bit "
        text += "file, whichever is worse; under other attacks as floats."
    corrupted = {entry.corruption for run in runs for entry in run.metrics.corruptions}
    levels = sorted({e.severity for run in runs for e in run.metrics.corruptions if e.severity is not None})
    if corrupted:
        names = formatting.join_words(formatting.corruption(name) for name in CORRUPTIONS if name in corrupted)
        text += f" Corruptions at severity {formatting.join_words(map(str, levels))}: {names}."
    return text.strip()


def _cited(label: str, paper: str) -> str:
    return f"{label} ({paper})" if paper else label


def _heatmaps(runs: list[Run]) -> str:
    parts = []
    for name in dict.fromkeys(m for run in runs for m in run.saliency_methods()):
        entry = SALIENCY.get(Method.parse(name).base)
        parts.append(_cited(formatting.method(name), entry.paper if entry else ""))
    if not parts:
        return ""
    text = f"Heatmaps of the true class: {'; '.join(parts)}. Each was compared with the annotated infection and lung "
    text += "masks and with chance"
    if any(part.random_weights for run in runs for part in run.saliency_methods().values()):
        text += " and with the same method on the same network with random weights"
    return f"{text}."


def _statistics(study: StudyDocument, runs: list[Run]) -> str:
    if not runs:
        return ""
    resamples = atomic.section(study.recipe, "evaluation").get("bootstrap")
    drawn = f" ({resamples:,} resamples)" if isinstance(resamples, int) else ""
    grouped = any(run.clean.groups is not None and run.clean.groups != run.clean.n for run in runs)
    over = "patients or groups of images" if grouped else "images"
    text = f"Intervals are 95 %, by bootstrap over {over}{drawn}."
    if study.comparisons:
        text += (
            " Runs were compared on the same images: paired differences with bootstrap intervals, p of a sign-flip "
            "test over groups, corrected for the number of comparisons (Holm)."
        )
    seeds = sorted({run.metrics.seed for run in runs if run.metrics.seed is not None})
    return text + (f" Seeds: {formatting.join_words(map(str, seeds))}." if seeds else "")


def _machine(study: StudyDocument, runs: list[Run]) -> str:
    versions = [f"{name} {version}" for name, version in study.versions.items() if name.lower() != "trustcxr"]
    hardware = study.hardware
    on = (hardware.processor, formatting.plural(hardware.cores, "core") if hardware.cores else "", hardware.accelerator)
    text = f"TrustCXR {study.trustcxr}" if study.trustcxr else ""
    text += f" with {', '.join(versions)}" if text and versions else ""
    text = ", on ".join(filter(None, (text, ", ".join(part for part in on if part))))
    text += f"; {formatting.seconds(study.seconds)} in all" if text and study.seconds else ""
    others = trained_elsewhere(study, runs)
    parts = ", ".join(f"{name} {where}" for name, where in others.items())
    text += f"; this is the last start, and runs were trained {parts}" if text and parts else ""
    return f"{text}." if text else ""


def trained_elsewhere(study: StudyDocument, runs: Sequence[Run]) -> dict[str, str]:
    """Return hardware and commits of runs that differ from those of the study."""
    hardware = study.hardware.model_dump(exclude_unset=True)
    return dict(segments.elsewhere([run.folder for run in runs], hardware, study.source))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
