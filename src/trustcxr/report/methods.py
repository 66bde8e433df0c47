"""Methods and provenance in sentences that can go into a paper: what the recipe asked for, and on what it ran."""

from collections.abc import Mapping, Sequence

from trustcxr.catalogue import ATTACKS, BACKGROUNDS, CORRUPTIONS, DEFENCES, SALIENCY, Method
from trustcxr.recipes.training import Augment
from trustcxr.report import words
from trustcxr.report.study_folder import Run
from trustcxr.report.summary import Point
from trustcxr.results import files, stretches
from trustcxr.results.documents import StudyDocument

_TRAINING = {
    "epochs": "at most {} epochs",
    "batch_size": "batches of {}",
    "optimiser": "optimiser {}",
    "learning_rate": "learning rate {}",
    "warmup_epochs": "warm-up over {} epochs",
    "schedule": "{} schedule",
    "weight_decay": "weight decay {}",
    "averaging": "weights averaged with a decay of {}",
    "label_smoothing": "label smoothing {}",
    "patience": "stopped after {} epochs without gain on validation",
    "refit": "trained once more on training and validation images together",
    "precision": "precision {}",
    "balanced": "every class drawn equally often",
    "balanced_by": "in each class every value of {} drawn equally often",
}
_OPTIONS = {
    "epsilon": "epsilon {} (L-infinity)",
    "steps": "steps {}",
    "beta": "beta {}",
    "replays": "replays {}",
    "ramp": "ramp {}",
    "clean_share": "share of the loss on clean images {}",
    "attack_share": "share of the loss on FGSM's images {}",
    "regulariser": "regulariser {}",
    "alpha": "alpha {}",
    "size": "size {}",
    "sigma": "sigma {}",
    "weight_perturbation": "weights perturbed by a share of {}",
    "attack_precision": "attack computed in {}",
}
_USUAL = {"attack_precision": "same"}
_AUGMENT = {
    "rotation": "rotation up to {} degrees",
    "shift": "shift up to {} of the side",
    "scale": "scaling by up to {}",
    "brightness": "brightness {}",
    "contrast": "contrast {}",
    "flip": "mirrored with probability {}",
    "spectrum": "amplitudes of spatial frequencies times or through up to exp({})",
}


def paragraphs(study: StudyDocument, runs: list[Run]) -> list[Point]:
    """A paragraph for each part of a methods section; a part of which nothing is known is left out."""
    parts = {
        "Data": _data(study, runs),
        "Networks and training": _training(study, runs),
        "Training to resist": _defences(study),
        "Attacks and corruptions": _attacks(study, runs),
        "Heatmaps": _heatmaps(study, runs),
        "Statistics": _statistics(study, runs),
        "Software and hardware": _machine(study, runs),
    }
    return [Point(lead, text) for lead, text in parts.items() if text]


def _data(study: StudyDocument, runs: list[Run]) -> str:
    data = study.data
    counts = [f"{split} {words.count(sum(numbers.values()))}" for split, numbers in data.counts.items() if numbers]
    classes = study.classes or next((run.metrics.classes for run in runs), [])
    if not counts and not classes:
        return ""
    text = f"Chest X-rays of {data.root_name or 'the data set'}"
    text += f" ({', '.join(counts)} images)" if counts else ""
    text += f", classes {words.listed(classes)}" if classes else ""
    if data.size:
        text += f"; one grey channel with values from 0 to 1, brought to {data.size} × {data.size} pixels"
    masks = [f"{split} {words.count(n)}" for split, n in data.infection_masks.items() if n]
    text += f". Infection masks: {', '.join(masks)}" if masks else ""
    text += f". Fingerprint of the images: {data.fingerprint}" if data.fingerprint else ""
    return text + "."


def _training(study: StudyDocument, runs: list[Run]) -> str:
    models, training = _list(study.recipe.get("models")), files.part(study.recipe, "training")
    names = [name for name in map(_network, models) if name]
    if not names:
        return ""
    text = f"{words.capital(words.plural(len(names), 'network'))}: {'; '.join(names)}."
    told = _settings(training).values()
    text += f" Training: {', '.join(told)}." if told else ""
    own = [
        f"{_called(model)} {', '.join(said)}"
        for model in models
        if isinstance(model, dict) and (said := _differing(files.part(model, "training"), [training]))
    ]
    text += f" Otherwise: {'; '.join(own)}." if own else ""
    text += _in_place(runs)
    chosen = study.selection
    if chosen.ranking and chosen.split:
        by = words.measure(chosen.by or "accuracy")
        text += f" The best {words.count(chosen.count)} by {by} on the split {chosen.split}, never on test images, "
        text += "were trained again to resist."
    return text


def _in_place(runs: list[Run]) -> str:
    """The runs whose machine could not compute in what the recipe asks for."""
    other: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        made = run.metrics.training
        if made.precision != made.precision_asked:
            other.setdefault((made.precision, made.precision_asked), []).append(run.name)
    said = [f"{words.listed(names)} in {used}, where {asked} was asked for" for (used, asked), names in other.items()]
    return f" Computed otherwise, as the machine could not: {'; '.join(said)}." if said else ""


def _network(model: object) -> str:
    if not isinstance(model, dict):
        return str(model) if model else ""
    said = [f"called {model['label']}"] if model.get("label") else []
    said += [f"{model['weights']} weights"] if model.get("weights") not in (None, "none", "") else []
    said += [f"{model['normalisation']} normalisation"] if model.get("normalisation") not in (None, "batch") else []
    said += [f"{model['activation']} activation"] if model.get("activation") not in (None, "own") else []
    said += [f"{model['members']} side by side"] if (words.finite(_text(model.get("members"))) or 1) > 1 else []
    name = str(model.get("name") or "")
    return f"{name} ({', '.join(said)})" if said and name else name


def _called(model: Mapping[str, object]) -> str:
    return str(model.get("label") or model.get("name") or words.DASH)


def _told(values: Mapping[str, object], said: Mapping[str, str]) -> dict[str, str]:
    """The settings that are not nothing, in words, by their key."""
    nothing = (None, 0, 0.0, "", False)
    return {key: text.format(values[key]) for key, text in said.items() if values.get(key) not in nothing}


def _settings(training: Mapping[str, object]) -> dict[str, str]:
    """What a recipe says of training, in words, by its key; what lesion masks are used for is one setting."""
    lesions = {"guidance": _guidance(training), "counterfactuals": _counterfactuals(training)}
    return {
        **_told(training, _TRAINING),
        **({"background": _background(training)} if training.get("background") else {}),
        **{key: text for key, text in lesions.items() if text},
        **_told(files.part(training, "augment"), _AUGMENT),
    }


def _background(training: Mapping[str, object]) -> str:
    entry = BACKGROUNDS.get(str(training["background"]))
    text = f"background of training images {training['background']}"
    text += f" ({entry.about})" if entry and entry.name != "full" else ""
    return text


def _guidance(training: Mapping[str, object]) -> str:
    if not training.get("guidance"):
        return ""
    on = str(training.get("guidance_on") or "evidence")
    stage = f" of stage {training.get('guidance_layer')}" if on == "cam" else ""
    loss = training.get("guidance_loss") or "energy"
    return f"{on}{stage} held to the lesion masks with a weight of {training['guidance']} (loss: {loss})"


def _counterfactuals(training: Mapping[str, object]) -> str:
    if not training.get("counterfactuals"):
        return ""
    share, fills = training["counterfactuals"], _list(training.get("counterfactual_fills")) or ["grey"]
    radius = words.finite(_text(training.get("counterfactual_epsilon")))
    filled = f"filled with {words.listed(map(str, fills))}{' in turn' if len(fills) > 1 else ''}"
    text = f"lesions taken out of a share of {share} of the films with one ({filled}) and put into the same share of "
    text += "healthy films"
    if radius is None or radius == 1:
        return text
    return f"{text}, both {f'attacked within {radius} of epsilon' if radius else 'shown without an attack'}"


def _differing(own: Mapping[str, object], others: Sequence[Mapping[str, object]]) -> list[str]:
    """What training keys of a model or a defence change in any of the others' settings, in words."""
    if "augment" in own:  # a key that it leaves out is the default there, not the study's
        usual = {key: field.default for key, field in Augment.model_fields.items()}
        own = {**own, "augment": usual | files.part(own, "augment")}
    found: dict[str, str] = {}
    for other in others:
        before, after = _settings(other), _settings({**other, **own})
        found |= {key: text for key, text in after.items() if before.get(key) != text}
        found |= {key: f"without {key.replace('_', ' ')}" for key in before if key not in after}
    return list(found.values())


def _defences(study: StudyDocument) -> str:
    training = files.part(study.recipe, "training")
    models = [files.part(model, "training") for model in _list(study.recipe.get("models")) if isinstance(model, dict)]
    others = [training, *({**training, **own} for own in models if own)]
    told = []
    for defence in _list(study.recipe.get("defences")):
        if not isinstance(defence, dict):
            continue
        entry = DEFENCES.get(str(defence.get("name")))
        cited = f"{entry.label} ({entry.paper})" if entry and entry.paper else str(defence.get("name") or words.DASH)
        cited = "standard training" if cited == words.STANDARD else cited
        label = [f"called {defence['label']}"] if defence.get("label") else []
        own = _differing(files.part(defence, "training"), others)
        told.append(", ".join([cited, *label, *options(defence), *own]))
    each = "Each of the chosen networks" if study.selection.ranking else "Each network"
    return f"{each} was trained as usual and, beside it, by {'; '.join(told)}." if told else ""


def options(defence: Mapping[str, object]) -> list[str]:
    """What a recipe says of its defence, a part each: only what that defence uses, so no epsilon of mixup's."""
    entry = DEFENCES.get(str(defence.get("name")))
    used = {key: text for key, text in _OPTIONS.items() if key in (entry.options if entry else ("epsilon",))}
    said = {key: value for key, value in defence.items() if value != _USUAL.get(key)}
    return list(_told(said, used).values())


def _attacks(study: StudyDocument, runs: list[Run]) -> str:
    efforts: dict[tuple[str, int | None, str], set[float]] = {}
    for run in runs:
        for entry in run.attacks:
            efforts.setdefault((entry.attack, entry.steps, entry.surrogate), set()).add(entry.epsilon or 0.0)
    told = []
    for (name, steps, surrogate), epsilons in efforts.items():
        paper = ATTACKS[name].paper if name in ATTACKS else ""
        cited = f"{words.attack(name, steps)} ({paper})" if paper else words.attack(name, steps)
        cited += f" with images made on {surrogate}" if surrogate else ""
        told.append(f"{cited} at epsilon {words.listed(words.epsilon(e) for e in sorted(epsilons))}")
    text = ""
    if told:
        text = f"Accuracy was measured under {'; '.join(told)}. Epsilon is the most that a pixel may change, of 1 "
        text += "(L-infinity, but for L2 attacks); perturbed images are kept within 0 and 1."
    corrupted = {entry.corruption for run in runs for entry in run.metrics.corruptions}
    levels = sorted({e.severity for run in runs for e in run.metrics.corruptions if e.severity is not None})
    if corrupted:
        names = words.listed(words.corruption(name) for name in CORRUPTIONS if name in corrupted)
        text += f" Corruptions at severity {words.listed(map(str, levels))}: {names}."
    return text.strip()


def _heatmaps(study: StudyDocument, runs: list[Run]) -> str:
    names = list(dict.fromkeys(m for run in runs for m in run.saliency_methods()))
    told = []
    for name in names:
        entry = SALIENCY.get(Method.parse(name).base)
        told.append(f"{words.method(name)} ({entry.paper})" if entry and entry.paper else words.method(name))
    if not told:
        return ""
    held = "beside the share that a map without knowledge would have"
    if any(part.random_weights for run in runs for part in run.saliency_methods().values()):
        held += " and beside the same method on the same network with random weights"
    return (
        f"Heatmaps of the true class: {'; '.join(told)}. Each was held against the annotated infection and lung masks, "
        f"{held}."
    )


def _statistics(study: StudyDocument, runs: list[Run]) -> str:
    if not runs:
        return ""
    resamples = files.part(study.recipe, "evaluation").get("bootstrap")
    drawn = f" ({words.count(_text(resamples))} resamples)" if words.finite(_text(resamples)) else ""
    grouped = any(run.clean.groups is not None and run.clean.groups != run.clean.n for run in runs)
    over = "patients or groups of images" if grouped else "images"
    text = f"Intervals are 95 %, by bootstrap over {over}{drawn}."
    if study.comparisons:
        text += (
            " Runs were compared on the same images: paired differences with bootstrap intervals, p by flipping the "
            "sign of each group’s difference at random, corrected for the number of comparisons (Holm)."
        )
    seeds = sorted({run.metrics.seed for run in runs if run.metrics.seed is not None})
    return text + (f" Seeds: {words.listed(map(str, seeds))}." if seeds else "")


def _machine(study: StudyDocument, runs: list[Run]) -> str:
    names = {name: said for name, said in study.versions.items() if name.lower() != "trustcxr"}
    with_them = f" with {', '.join(f'{name} {said}' for name, said in names.items())}" if names else ""
    text = f"TrustCXR {study.trustcxr}{with_them}" if study.trustcxr else ""
    hardware = study.hardware
    on = [hardware.processor, f"{hardware.cores} cores" if hardware.cores else "", hardware.accelerator]
    where = ", ".join(part for part in on if part)
    text += f", on {where}" if text and where else where
    text += f"; {words.seconds(study.seconds)} in all" if text and study.seconds else ""
    others = stretches.elsewhere([run.folder for run in runs], dict(hardware.items()), study.source)
    told = ", ".join(f"{name} {said}" for name, said in others.items())
    text += f"; that is the last start, and runs were trained {told}" if text and told else ""
    return f"{text}." if text else ""


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return None if value is None else str(value)
