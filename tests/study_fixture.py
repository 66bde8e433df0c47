"""A small study folder as study.py writes it, with seeded random numbers: what the tests of the report read.

Predictions are drawn first and every metric is computed from them, so that the files agree with each other.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.evaluation import calibration, gradient_masking, metrics, run_figures
from trustcxr.storage.atomic import plain
from trustcxr.storage.schemas import RunDocument

CLASSES = ("COVID-19", "Non-COVID", "Normal")
# How often a run is right: clean, and at a small epsilon under (FGSM, PGD); the fall with epsilon follows from these.
SKILL = {"standard": (0.82, 0.34, 0.004), "fgsm": (0.72, 0.62, 0.10), "pgd": (0.66, 0.58, 0.52)}
EPSILONS = (0.005, 0.01, 0.02)
CORRUPTED = (("gaussian_noise", 1), ("gaussian_noise", 5), ("leads_and_tubes", 1), ("leads_and_tubes", 5))


def make_study(
    folder: Path,
    *,
    models: tuple[str, ...] = ("ResNet18", "tf_efficientnet_lite0"),
    defences: tuple[str, ...] = ("standard", "fgsm"),
    classes: tuple[str, ...] = CLASSES,
    images: int = 90,
    attacks: tuple[str, ...] = ("fgsm", "pgd"),
    corrupted: tuple[tuple[str, int], ...] = CORRUPTED,
    saliency: bool = True,
    panels: int = 2,
    side: int = 48,
    epochs: int = 8,
    resamples: int = 100,
) -> Path:
    """Write study.json and the files of every run into `folder`."""
    random = np.random.default_rng(7)
    runs = []
    pictures = _pictures(random, panels, side, classes[0])
    for number, model in enumerate(models):
        gift = 0.02 * (len(models) / 2 - number) / max(len(models), 2)
        for defence in defences:
            name = f"{model.lower()}-{defence}-s0"
            name = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
            home = folder / "runs" / name
            home.mkdir(parents=True)
            table = _predictions(random, defence, gift, classes, images, attacks, corrupted)
            table.to_parquet(home / "predictions.parquet", index=False)
            document = {
                "run": name, "model": model, "defence": defence, "background": "full", "seed": 0,
                "classes": list(classes), "split": "Test",
                **metrics.from_predictions(table, classes, resamples=resamples).plain(),
                "saliency": _saliency(random, defence, images // 3) if saliency else {},
            }  # fmt: skip
            document["masking"] = gradient_masking.verdict(RunDocument.model_validate(document)).plain()
            if corrupted:
                validation = _predictions(random, defence, gift, classes, images, (), ()).assign(split="Val")
                document["calibration"] = calibration.describe(table, validation, resamples=resamples).plain()
            alarms = run_figures.find_alarms(RunDocument.model_validate(document))
            document["alarms"] = [alarm.plain() for alarm in alarms]
            (home / "metrics.json").write_text(json.dumps(plain(document)))
            _history(random, defence, epochs).to_csv(home / "history.csv", index=False)
            if panels:
                np.savez(home / "example_maps.npz", **_heatmaps(random, pictures, defence, classes))
            training = {
                "epochs": epochs, "best_epoch": epochs - 2, "seconds": 212.0, "parameters": 3_374_275,
                "monitor": "val_accuracy", "best_value": 0.8, "stopped": "epochs",
            }  # fmt: skip
            runs.append(document | {"training": training})
    (folder / "study.json").write_text(json.dumps(plain(_study(runs, models, classes))))
    return folder


def _predictions(
    random: np.random.Generator, defence: str, gift: float, classes: tuple[str, ...], images: int,
    attacks: tuple[str, ...], corrupted: tuple[tuple[str, int], ...],
) -> pd.DataFrame:  # fmt: skip
    labels = np.arange(images) % len(classes)
    luck = random.random(images)
    clean, fgsm, pgd = (min(s + gift, 1.0) for s in SKILL.get(defence, SKILL["standard"]))
    names = [f"Test/{classes[k]}/image_{i:03}.png" for i, k in enumerate(labels)]
    common = {"sample_id": names, "group": names, "split": "Test", "class": [classes[k] for k in labels]}
    parts = [("clean", 0.0, 0, clean, 0)]
    parts += [(name, 0.0, 0, clean * (1 - 0.08 * severity), severity) for name, severity in corrupted]
    for attack, e in itertools.product(attacks, EPSILONS):
        end = fgsm if attack == "fgsm" else pgd
        parts.append((attack, e, 20 if attack == "pgd" else 1, clean * (max(end, 1e-3) / clean) ** (e / 0.02), 0))
    frames = []
    for attack, epsilon, steps, share, severity in parts:
        right = luck < share
        answer = np.where(right, labels, (labels + 1 + random.integers(len(classes) - 1, size=images)) % len(classes))
        logits = random.normal(0, 0.7, (images, len(classes)))
        logits[np.arange(images), answer] = logits.max(axis=1) + random.exponential(1.5, images) + 0.01
        extra = {"label": labels, "attack": attack, "epsilon": epsilon, "steps": steps, "severity": severity}
        frames.append(pd.DataFrame(common | extra | {"logits": list(logits.astype(np.float32))}))
    return pd.concat(frames, ignore_index=True)


def _saliency(random: np.random.Generator, defence: str, count: int) -> dict[str, Any]:
    values = {"infection_energy": 0.115, "infection_iou": 0.10, "pointing_hit_rate": 0.09, "lung_energy": 0.21}
    chance = {"infection_energy": 0.121, "infection_iou": 0.11, "pointing_hit_rate": 0.121, "lung_energy": 0.231}
    document: dict[str, Any] = {"target": "label", "condition": "clean", "n": count, "without_mask": 3}
    document["null_map_rate"] = {"value": 0.0}
    for name, value in values.items():
        value = value * random.uniform(0.8, 1.3) * (1.4 if defence == "pgd" else 1.0)
        document[name] = {"value": value, "ci": [value * 0.88, value * 1.13], "chance": chance[name]}
    likeness = random.uniform(0.4, 0.9)
    document["stability_ssim"] = {"value": likeness, "ci": [likeness - 0.04, likeness + 0.04]}
    return {"gradcam": document}


def _history(random: np.random.Generator, defence: str, epochs: int) -> pd.DataFrame:
    clean, fgsm, pgd = SKILL.get(defence, SKILL["standard"])
    grow = 1 - np.exp(-np.arange(1, epochs + 1) / 2.5)
    noise = random.normal(0, 0.015, (4, epochs))
    return pd.DataFrame(
        {
            "epoch": np.arange(epochs), "train_loss": 1.1 - 0.8 * grow, "learning_rate": 5e-4, "epsilon": 0.02,
            "train_accuracy": (clean + 0.1) * grow + noise[0], "val_accuracy": clean * grow + noise[1],
            "val_fgsm_accuracy": np.clip(fgsm * grow + noise[2], 0, 1),
            "val_pgd_accuracy": np.clip(pgd * grow + noise[3] * (pgd > 0.05), 0, 1),
            "seconds": 26.0 * np.arange(1, epochs + 1),
        }
    )  # fmt: skip


def _pictures(random: np.random.Generator, count: int, side: int, name: str) -> dict[str, np.ndarray]:
    y, x = np.mgrid[0:side, 0:side] / side
    lungs = np.hypot((np.minimum(x, 1 - x) - 0.3) / 0.16, (y - 0.5) / 0.33) < 1
    image, infection = np.empty((count, side, side), np.uint8), np.empty((count, side, side), np.uint8)
    for i in range(count):
        spot = np.hypot(x - random.uniform(0.25, 0.35), y - random.uniform(0.5, 0.7)) < random.uniform(0.08, 0.15)
        grey = 170 - 110 * lungs + 70 * (spot & lungs) + random.normal(0, 9, (side, side))
        image[i], infection[i] = np.clip(grey, 0, 255), spot & lungs
    return {
        "image": image, "infection": infection, "lung": np.repeat(lungs[None], count, 0).astype(np.uint8),
        "sample_id": np.array([f"Test/{name}/image_{i:03}.png" for i in range(count)]),
        "class_name": np.array([name] * count),
    }  # fmt: skip


def _heatmaps(
    random: np.random.Generator, pictures: dict[str, np.ndarray], defence: str, classes: tuple[str, ...]
) -> dict[str, np.ndarray]:
    count, side, _ = pictures["image"].shape
    y, x = np.mgrid[0:side, 0:side] / side
    maps = np.empty((count, side, side), np.float32)
    for i in range(count):
        cx, cy = (0.3, 0.6) if defence == "pgd" else random.uniform(0.1, 0.9, 2)
        maps[i] = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.03)
    energy = (maps * pictures["infection"]).sum((1, 2)) / maps.sum((1, 2))
    predicted = np.array([classes[int(k)] for k in random.integers(len(classes), size=count)], dtype=str)
    return pictures | {"saliency": maps, "predicted": predicted, "infection_energy": energy.astype(np.float32)}


def _comparisons(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows, maps = [], ("infection_energy", "infection_iou", "pointing_hit_rate")
    for standard, robust in itertools.permutations(runs, 2):
        if standard["defence"] != "standard" or robust["model"] != standard["model"]:
            continue
        pairs = [("clean accuracy", standard["clean"]["accuracy"], robust["clean"]["accuracy"], 0.05)]
        for a, b in zip(standard["attacks"], robust["attacks"], strict=True):
            if a["epsilon"] == 0.02:
                pairs.append((f"{a['attack']} accuracy @{a['epsilon']:g}", a["accuracy"], b["accuracy"], 0.05))
        if standard["saliency"]:
            a, b = standard["saliency"]["gradcam"], robust["saliency"]["gradcam"]
            pairs += [(name, a[name], b[name], 0.012) for name in maps]
        for measure, before, after, half in pairs:
            before, after = before["value"], after["value"]
            gap = after - before
            rows.append(
                {
                    "model": standard["model"], "measure": measure, "standard": before, "robust": after,
                    "defence": robust["defence"], "difference": {"value": gap, "ci": [gap - half, gap + half]},
                    "n": 30 if half < 0.05 else standard["clean"]["n"],
                    "p_value": float(np.exp(-((gap / half) ** 2))),
                }
            )  # fmt: skip
    return rows


def _study(runs: list[dict[str, Any]], models: tuple[str, ...], classes: tuple[str, ...]) -> dict[str, Any]:
    counts = {split: dict.fromkeys(classes, n) for split, n in (("Train", 600), ("Val", 90), ("Test", 30))}
    ranking = [{"model": m, "value": 0.83 - 0.004 * i, "chosen": i < 6} for i, m in enumerate(models)]
    recipe = {
        "name": "fixture", "data": {"size": 96}, "models": list(models),
        "defences": [{"name": "fgsm", "epsilon": 0.02}], "evaluation": {"attacks": [{"epsilons": list(EPSILONS)}]},
    }  # fmt: skip
    return {
        "study": "fixture", "title": "Adversarial training on chest X-rays: a fixture of the tests",
        "created": "2025-11-25T01:02:03+00:00", "trustcxr": "0.1.0",
        "hardware": {"processor": "a processor", "cores": 2, "accelerator": None}, "seconds": 1812.4,
        "data": {
            "root_name": "covidqu-mini", "layout": "covidqu", "counts": counts, "skipped": 1, "size": 96,
            "infection_masks": {"Train": 400, "Val": 80, "Test": 30},
        },
        "recipe": recipe, "classes": list(classes),
        "selection": {"split": "Val", "by": "accuracy", "count": min(6, len(models)), "ranking": ranking},
        "runs": runs, "comparisons": _comparisons(runs),
        "alarms": [{"run": r["run"]} | a for r in runs for a in r["alarms"]],
        "notice": "Research software. Not for diagnosis.",
    }  # fmt: skip
