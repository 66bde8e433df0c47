"""Is the disease the reason for the answer? Runs held against lesion masks, by picture and by cause.

    python -m benchmarks.findings.lesions RUN... --data covidqu-midi [--split Val] [--map METHOD]

For each run: accuracy, clean and in the worst case of several attacks, and with the lungs blacked out; where its map
lies, beside every map that knows no model; and what removing or transplanting the lesion does to its answer. Runs of
one recipe under several seeds have a row for their mean. What is measured of a run is kept in its folder, so that test
images are touched once; of covidqu-midi's Test also for those of its films alone that covidqu-mini has. On Test, writes
results/lesions-<data>.md and .csv; on another split it prints the page. No number is typed by hand.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.findings.seeds import command, mini_alone, of_mini
from trustcxr import attacks
from trustcxr.catalogue import Method
from trustcxr.console import say
from trustcxr.data import load_dataset
from trustcxr.data.lesions import FILLS, Films, films_of
from trustcxr.evaluation import metrics, predictions
from trustcxr.evaluation.run import Run, load_run
from trustcxr.explain import lesions, margins, measures, methods
from trustcxr.models import evidence
from trustcxr.models.lung_gate import LungGate
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.recipes.training import DefenceRecipe
from trustcxr.report import markdown
from trustcxr.results import files
from trustcxr.results.tables import logits_of
from trustcxr.training import lung_segmenter

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

RESULTS = Path(__file__).resolve().parents[2] / "results"
EPSILON, BATCH, HEADLINE = 0.02, 64, ("grey", "lung")
TRIED = ("evidence", "gradcam", "layercam-smooth@gate")
CAUSES = """The probability of the film's class: as it is; with the part of the lesion that has a congruent counterpart
in healthy lung filled with the healthy grey; with the counterpart filled alike; with the whole lesion filled. The
lesion effect is the third less the second; where the third is above the first, that rise of the control is part of it.
Then the effect by other fills: mirrored lung, where part and counterpart both have it; inpainting, which comes close to
a fill that some networks were taught (`surroundings`); and greys of the film's healthy lung drawn at random, which are
like no fill of training: which of these a network has seen stands under the table. Against background: as much of the
film outside the lungs took on the very same change; whoever reads the texture of lungs has an effect beside that, so it
proves nothing by itself. Transplant: what a lesion adds to a healthy film beyond a healthy patch.
"""
CAUSES_HEAD = [
    "film",
    "lesion gone",
    "control gone",
    "all gone",
    "lesion effect",
    "flips (control)",
    "mirror",
    "inpaint",
    "drawn",
]
CAUSES_HEAD += ["against background", "under PGD", "transplant"]
OVER_SEEDS = (
    "clean",
    "worst_case",
    "lungs_blacked_out",
    "hit_rate",
    "hit_rate_less_control",
    "infection_given_lung_less_control",
    "lesion_effect",
    "lesion_effect_drawn",
)
GOALS = {
    "worst_case": 0.60,
    "clean": 0.80,
    "hit_rate_less_control": 0.10,
    "infection_given_lung_less_control": 0.05,
    "lesion_effect": 0.20,
    "lungs_blacked_out": 0.40,
}
CLOSEST = ("hit_rate_control", "infection_given_lung_control")  # of a mean of seeds: of each of them
ACCURACIES, AT_MOST = ("clean", "worst_case", "lungs_blacked_out"), ("lungs_blacked_out",)
MAPPED = ("hit_rate", "infection_given_lung")  # what maps are judged by
CONDITIONS = ("clean", "pgd", "worst-case", "lungs_blacked_out")
WORST_CASE = {"name": "worst-case", "epsilons": (EPSILON,), "steps": 30, "queries": 300, "precision": "bf16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="Test")
    parser.add_argument("--map", action="append", default=[], help="a further map of each run, such as gradcam@-3")
    parser.add_argument("--note", default="", help="what the figures do not tell, such as what did not work")
    given = parser.parse_args()
    both = [measured(folder, given.data, given.split, given.map) for folder in given.runs]
    found, mini = [one["all"] for one in both], [one["mini"] for one in both if "mini" in one]
    best = ceiling(given.runs[0], given.data, given.split)
    text = page(found, given.data.resolve().name, given.split, given.note, best, mini) + trained_by(given.runs)
    print(text)
    if given.split == "Test":
        name = f"lesions-{given.data.resolve().name}"
        table = with_means(found, mini)
        ends = {name: part["mean"] for name, part in best.items() if name in table}
        for name in list(ends):
            over = best[name]["less_control"]
            ends |= {f"{name}_less_control": over["difference"], f"{name}_less_control_low": over["low"]}
            ends |= {f"{name}_control": over["control"]}
        table = pd.concat([table, pd.DataFrame([{"run": "segmenter", "seeds": 1} | ends])], ignore_index=True)
        table.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.4f")
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def measured(folder: Path, path: Path, split: str, further: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Everything about one run on a split, with `further` maps beside its own; from its folder where it is there.

    By which films: "all", and of a Test with films of covidqu-mini also these alone, "mini".
    """
    kept = folder / f"lesions-by-films-{path.resolve().name}-{split}.json"
    if kept.is_file():
        return files.read_json(kept)
    run = load_run(folder)
    data = load_dataset(path, split=split, **run.trained_by.data.reading())
    train = load_dataset(path, split=run.trained_by.data.splits.train, **run.trained_by.data.reading())
    mini = of_mini(data.table) & (split == "Test")
    chosen = {"all": np.ones(len(data), dtype=bool)} | ({"mini": mini} if mini.any() else {})
    say(f"{run.name}: accuracy on {len(data)} images of {split}")
    attack = [AttackRecipe(name="pgd", epsilons=(EPSILON,), steps=20), AttackRecipe.model_validate(WORST_CASE)]
    table = predictions.predict(run, data, attack)
    rows = lesions.with_lesions(data)
    ill, labels, groups = annotated(run, data)
    some = {name: np.flatnonzero(films[rows]) for name, films in chosen.items()}
    say(f"{run.name}: maps and causes on {len(ill.images)} films with a lesion")
    shown = maps(run, ill, labels, groups, margins.mean_mask(np.asarray(train.masks("infection"))), some, further)
    because, put_in = causes(run, ill, labels, groups, some), transplants(run, data, ill, labels, chosen)
    trained = run.trained_by.training
    about = {
        "run": called(run.trained_by),
        "training": run.training,
        "fills": list(trained.counterfactual_fills) if trained.counterfactuals else [],
        "guided": guided_map(run),
    }
    document = {
        name: about
        | {"images": int(films.sum())}
        | {"answers": accuracies(table[table["sample_id"].isin(data.sample_ids[films])], run.classes)}
        | {"maps": shown[name], "causes": because[name], "transplants": put_in[name]}
        for name, films in chosen.items()
    }
    files.write_json(kept, document)
    return document


def ceiling(folder: Path, path: Path, split: str) -> dict[str, Any]:
    """What a segmenter that was trained on the same masks would have as a map; from the run's folder where it is.

    By measure its mean and `less_control`, what it has over the control that comes closest, as sharp as itself.
    """
    place = folder / f"segmenter-beside-{path.resolve().name}-{split}.json"
    if not place.is_file():
        run = load_run(folder)
        reading = run.trained_by.data.reading()
        data = load_dataset(path, split=split, **reading)
        train = load_dataset(path, split=run.trained_by.data.splits.train, **reading)
        segmenter = LungGate()
        plain = run.trained_by.model_copy(update={"defence": DefenceRecipe()})
        lung_segmenter.fit(segmenter, train.images, train.masks("infection"), plain, called="lesion segmenter")
        ill, _, groups = annotated(run, data)
        with torch.no_grad():
            found = segmenter.eval().logits(ill.images.cpu()).sigmoid()[:, 0] * ill.lung.cpu()
        masks = margins.Lesions(ill.lesion.cpu(), ill.lung.cpu())
        mean = margins.mean_mask(np.asarray(train.masks("infection")))
        within, controls = margins.measured(found, masks), margins.film_controls(ill.images.cpu(), ill.lung.cpu(), mean)
        beside = {margins.CHANCE: margins.by_chance(masks)} | margins.beside(controls, masks, found)
        table = {"margins": margins.margins(within, beside, groups).to_dict("records")}
        files.write_json(
            place,
            {name: mean_of(values, groups) | {"less_control": closest(table, name)} for name, values in within.items()},
        )
    return files.read_json(place)


def accuracies(table: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """By condition: accuracy, and its mean over classes (recall_macro), each with its interval."""
    found = {}
    for name, rows in table[table["attack"].isin(CONDITIONS)].groupby("attack"):
        labels = rows["label"].to_numpy(dtype=np.int64)
        whole = metrics.classification(logits_of(rows), labels, rows["group"], classes)
        found[str(name)] = {k: whole[k] for k in ("accuracy", "accuracy_ci", "recall_macro", "recall_macro_ci", "n")}
    return found


def annotated(run: Run, data: "Dataset") -> tuple[Films, Tensor, np.ndarray]:
    """The films with a lesion mask, their labels and their groups."""
    rows = lesions.with_lesions(data)
    return (
        films_of(data, rows, run.device),
        torch.from_numpy(data.labels[rows]).to(run.device),
        data.groups[rows],
    )


def batches(count: int) -> list[slice]:
    """Slices of at most BATCH rows."""
    return [slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


# --- measured --------------------------------------------------------------------------------------------------------


def maps(
    run: Run,
    ill: Films,
    labels: Tensor,
    groups: np.ndarray,
    mean: Tensor,
    some: Mapping[str, np.ndarray],
    further: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Of `some` of the films, by method: its measures, what it has over each control, how it ranks regions by cause."""
    of_film = margins.film_controls(ill.images, ill.lung, mean)
    falls = torch.cat([lesions.causes(run.model, ill[part], labels[part]) for part in batches(len(labels))])
    bright = lesions.ranked_by_cause(ill.images[:, 0] * ill.lung, falls)
    found: dict[str, dict[str, Any]] = {which: {} for which in some}
    for name in [*own_methods(run), *further]:
        wanted = [name, activation_of(name)]
        parts = [methods.maps(run.model, ill.images[part], labels[part], wanted) for part in batches(len(labels))]
        shown, plain = (torch.cat([part[one] for part in parts]) for one in wanted)
        controls, ranked = of_film | {"activation": plain}, lesions.ranked_by_cause(shown, falls)
        for which, rows in some.items():
            masks = margins.Lesions(ill.lesion[rows], ill.lung[rows])
            these = {control: values[rows] for control, values in controls.items()}
            beside = {margins.CHANCE: margins.by_chance(masks)} | margins.beside(these, masks, shown[rows])
            table = margins.margins(margins.measured(shown[rows], masks), beside, groups[rows])
            found[which][name] = {
                "margins": table.to_dict("records"),
                "null": float(measures.null_map(shown[rows]).float().mean()),
                "withheld": withheld(run, name, masks, ill.images),
                "by_cause": mean_of(ranked[rows], groups[rows]),
                "brightness_by_cause": mean_of(bright[rows], groups[rows]),
            }
    return found


def withheld(run: Run, name: str, masks: margins.Lesions, images: Tensor) -> str:
    """Why a map has no hit rate: the best of its cells hits less often than chance. Empty where it has one."""
    cells = methods.cells(run.model, images[:1], name)
    chance = float(np.nanmean(margins.by_chance(masks)["hit_rate"]))
    best = 1.0 if cells is None else float(measures.pointing_ceiling(masks.lesion, cells).double().nanmean())
    if cells is None or best >= chance:
        return ""
    return f"withheld: the best of its {cells[0]} x {cells[1]} cells would hit {best:.3f}, chance {chance:.3f}"


def own_methods(run: Run) -> list[str]:
    """The methods that this network has: its evidence, or a CAM; behind a lung gate also at it; what was guided."""
    sums = evidence.reads_evidence(run.model)  # of which Grad-CAM is the evidence itself
    has = {"evidence": sums, "gradcam": not sums, "layercam-smooth@gate": run.trained_by.lung_gate}
    names = [name for name in TRIED if has[name]]
    return list(dict.fromkeys([*names, *filter(None, [guided_map(run)])]))


def guided_map(run: Run) -> str:
    """The map that guidance held to the masks in training; empty without."""
    training = run.trained_by.training
    cam = "gradcam" if training.guidance_layer == -1 else f"gradcam@{training.guidance_layer}"
    held = {"evidence": "evidence", "cam": cam, "gradients": "integrated-gradients"}
    return held[training.guidance_on] if training.guidance else ""


def activation_of(method: str) -> str:
    """The control of a method: its layer without the gradient; of evidence, the features that it is read from."""
    return str(Method.parse(method).control or "activation")


def causes(
    run: Run, ill: Films, labels: Tensor, groups: np.ndarray, picked: Mapping[str, np.ndarray]
) -> dict[str, list[dict[str, Any]]]:
    """Of the films `picked` the lesion effect by fill and control, on films as they are and under attack."""
    found: dict[str, list[dict[str, Any]]] = {which: [] for which in picked}
    for condition in ("clean", "pgd"):
        tables = []
        for number, part in enumerate(batches(len(labels))):
            some, own = ill[part], labels[part]
            if condition == "pgd":
                perturbed = attacks.pgd(run.model, some.images, own, epsilon=EPSILON, steps=20, seed=number)
                some = Films(perturbed, some.lung, some.lesion)
            tables.append(lesions.removal(run.model, some, own).assign(part=part.start))
        table = pd.concat(tables, ignore_index=True)
        table["film"] += table.pop("part")
        table["group"] = groups[table["film"].to_numpy()]
        table = table.assign(condition=condition, epsilon=EPSILON if condition == "pgd" else 0.0)
        for which, rows in picked.items():
            found[which] += [each.plain() for each in lesions.described(table[table["film"].isin(rows)])]
    return found


def transplants(
    run: Run, data: "Dataset", ill: Films, labels: Tensor, chosen: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """What a lesion adds to healthy films, each from another donor, drawn by a fixed seed; of the `chosen` ones."""
    healthy = np.flatnonzero(data.labels == run.classes.index(run.trained_by.training.healthy))
    random = np.random.default_rng(0)
    donors = torch.from_numpy(random.integers(len(labels), size=len(healthy))).to(run.device)
    order = random.permutation(len(healthy))
    others = np.empty_like(healthy)
    others[order] = healthy[np.roll(order, 1)]  # of a film never that film itself
    tables = []
    for part in batches(len(healthy)):
        giver = films_of(data, others[part], run.device)
        into, lesion = films_of(data, healthy[part], run.device), ill[donors[part]]
        tables.append(lesions.transplantation(run.model, into, lesion, giver, labels[donors[part]]))
    table, found = pd.concat(tables, ignore_index=True).assign(film=np.arange(len(healthy))), {}
    for which, films in chosen.items():
        some = table[films[healthy]]
        means = {k: float(some[k].mean()) for k in ("before", "without", "beside")}
        found[which] = means | asdict(lesions.summed_up(some, data.groups[healthy][films[healthy]]))
    return found


def mean_of(values: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """A mean with its interval over groups."""
    from trustcxr.statistics import mean_interval

    mean, ends = mean_interval(values, groups)
    return {"mean": mean, "ci": ends}


# --- shown -----------------------------------------------------------------------------------------------------------


def with_means(found: Sequence[dict[str, Any]], mini: Sequence[dict[str, Any]] = ()) -> pd.DataFrame:
    """A row for each run, then one for each recipe: the mean over its seeds of every figure, and the spread of some.

    Spread: the largest less the smallest. Ends of intervals are means of the seeds' ends, each over groups of films.
    Of covidqu-mini's films alone, where they are given: what stands in the table of means, each column after `mini_`.
    """
    runs = pd.DataFrame([row(run) for run in found])
    beside = pd.DataFrame([row(run) for run in mini])
    told = [name for name in beside if str(name).removesuffix("_low") in OVER_SEEDS or name in ("films", "images")]
    runs = runs.join(beside[told].add_prefix("mini_"))
    runs.insert(1, "recipe", runs["run"].str.replace(r"-s\d+$", "", regex=True))
    runs.insert(2, "seeds", 1)
    figures = runs.select_dtypes("number").columns.drop("seeds")
    rows = []
    for recipe, seeds in runs.groupby("recipe", sort=False):
        spread = [name for name in figures if str(name).removeprefix("mini_") in OVER_SEEDS]
        mean = seeds[figures].mean().to_dict() | {f"{m}_spread": np.ptp(seeds[m].to_numpy()) for m in spread}
        mean |= {name: "; ".join(seeds[name].dropna().unique()) for name in CLOSEST if name in seeds}
        rows.append({"run": f"{recipe}, mean", "recipe": recipe, "seeds": len(seeds)} | mean)
    return pd.concat([runs, pd.DataFrame(rows)], ignore_index=True).round(4)  # as the CSV has them


def row(found: dict[str, Any]) -> dict[str, Any]:
    """One run as a row of the CSV: shares from 0 to 1; `less_control` is less the control that comes closest."""
    best, answers = first_map(found), found["answers"]
    hit, inside = closest(best[1], "hit_rate"), closest(best[1], "infection_given_lung")
    effect = cause_of(found, *HEADLINE)
    columns: dict[str, Any] = {"run": found["run"], "map": best[0]}
    for name in CONDITIONS:
        column = name.replace("-", "_")
        columns |= {column: answers[name]["accuracy"], f"{column}_balanced": answers[name]["recall_macro"]}
    for name, part in (("hit_rate", hit), ("infection_given_lung", inside)):
        columns |= {name: part["value"], f"{name}_control": part["control"]}
        columns |= {f"{name}_less_control": part["difference"], f"{name}_less_control_low": part["low"]}
    if best[1]["withheld"]:
        columns |= dict.fromkeys(("hit_rate", "hit_rate_less_control", "hit_rate_less_control_low"), np.nan)
    columns |= {"lesion_effect": effect["effect"], "lesion_effect_low": effect["effect_ci"][0]}
    columns |= {"lesion_effect_drawn_low": cause_of(found, "drawn", "lung")["effect_ci"][0]}
    columns |= {f"lesion_effect_{fill}": cause_of(found, fill, "lung")["effect"] for fill in FILLS}
    columns |= {
        "lesion_effect_background": cause_of(found, "grey", "background")["effect"],
        "lesion_effect_pgd": cause_of(found, *HEADLINE, condition="pgd")["effect"],
        "flipped": effect["flipped"],
        "flipped_control": effect["flipped_control"],
        "transplant_effect": found["transplants"]["effect"],
        "transplant_effect_low": found["transplants"]["effect_ci"][0],
        "ranked_by_cause": best[1]["by_cause"]["mean"],
        "films": effect["films"],
        "left_out": effect["left_out"],
        "images": found["images"],
    }
    return columns


def first_map(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The map that stands in the row: what was guided, else the evidence, at the lung gate, or Grad-CAM."""
    order = (found["guided"], "evidence", "layercam-smooth@gate", "gradcam")
    names = [name for name in order if name in found["maps"]]
    return names[0], found["maps"][names[0]]


def closest(part: dict[str, Any], measure: str) -> dict[str, Any]:
    """What the map has over the control that comes closest to it."""
    rows: list[dict[str, Any]] = [r for r in part["margins"] if r["measure"] == measure]
    return min(rows, key=lambda r: r["difference"])


def cause_of(found: dict[str, Any], fill: str, control: str, condition: str = "clean") -> dict[str, Any]:
    """The lesion effect of one fill and control."""
    keys = {"fill": fill, "control": control, "condition": condition}
    return next(r for r in found["causes"] if all(r[k] == v for k, v in keys.items()))


def page(
    found: Sequence[dict[str, Any]],
    data: str,
    split: str,
    note: str,
    ceiling: dict[str, Any] | None = None,
    mini: Sequence[dict[str, Any]] = (),
) -> str:
    """The page of results/: one table of accuracy, one of maps, one of causes, one by the size of the lesion."""
    some, count, table = cause_of(found[0], *HEADLINE), found[0]["images"], with_means(found, mini)
    asked = f"--data {data}" + ("" if split == "Test" else f" --split {split}")
    text = [
        "# Is the disease the reason for the answer?\n",
        f"`python -m benchmarks.findings.lesions RUN... {asked}`. {count} {split} images of {data}, "
        f"{some['films'] + some['left_out']} of them with a lesion mask (lesion effect: the "
        f"{some['films']} with a congruent part in healthy lung); epsilon {EPSILON:g} (L-infinity, pixel space); 95 % "
        f"intervals over patients or groups of images. {touched(split)} No network saw "
        "a mask at test. Research software, not for diagnosis.\n",
        *([note + "\n"] if note else []),
        "## Mean over seeds\n",
        "Accuracies in percent; in brackets the spread, the largest less the smallest of the seeds. Bold: the goal is "
        f"met ({asked_for()}). Lungs blacked out: in black alone, and the goal is met by one answer for all "
        "films too, but for the commonest.\n",
        *markdown.table(["network", "seeds", *map(words, told_of(table)), "goals met"], means_rows(table)),
        "\n" + nearest(table) + "\n",
        *of_mini_alone(table),
        "## Answers\n",
        "Percent answered rightly, and in brackets the mean over classes (a constant answer has 33.3 there). Worst "
        "case: of APGD on two losses, FAB and Square, searched in bfloat16 and confirmed in float32.\n",
        *markdown.table(["run", "clean", "PGD-20", "worst case", "lungs blacked out"], [answers_row(f) for f in found]),
        "\n## Where the map lies\n",
        "Less control: less the control that comes closest, a map without a model or what the network's own layer "
        "shows, on the same films, with its name; not less the same network with random weights, which was not "
        "measured here. Empty: maps without a positive part, which hit nothing.\n",
        *markdown.table(
            [
                "run",
                "map",
                "empty",
                "hit rate",
                "less control",
                "infection given lung",
                "less control",
                "ranks by cause",
            ],
            [cells for f in found for cells in maps_rows(f)],
        ),
        "\nThe map less every control, paired:\n",
        *markdown.table(
            ["run", "map", "control", "hit rate, less control", "infection given lung, less control"],
            [cells for f in found for cells in controls_rows(f)],
        ),
        *(segmented(ceiling) if ceiling else []),
        "\n## What the lesion does\n",
        CAUSES,
        *markdown.table(["run", *CAUSES_HEAD], [causes_row(f) for f in found]),
        "\nFills that training used: "
        + "; ".join(f"{', '.join(filled)} in {', '.join(runs)}" for filled, runs in by_fills(found).items())
        + ". The others used none.",
        "\nBy how much of the lungs the lesion covers (films):\n",
        *markdown.table(
            ["run", *(f"up to {100 * s['up_to']:.0f} %" for s in some["by_size"])], [sizes_row(f) for f in found]
        ),
        "\nOf films under PGD before, by every fill:\n",
        *markdown.table(["run", *FILLS], [attacked_row(f) for f in found]),
    ]
    return "\n".join(text) + "\n"


def of_mini_alone(table: pd.DataFrame) -> list[str]:
    """The table of means of covidqu-mini's films alone, from the rows of the CSV, where they are told of."""
    if "mini_images" not in table:
        return []
    own = mini_alone(table)
    return [
        f"## The {int(own['images'].iloc[0])} films of covidqu-mini among them\n",
        f"The same, measured on these alone; lesion effect: the {int(own['films'].iloc[0])} with a congruent part in "
        "healthy lung.\n",
        *markdown.table(["network", "seeds", *map(words, told_of(own)), "goals met"], means_rows(own)),
        "",
    ]


def called(recipe: RunRecipe) -> str:
    """The name of a run, which says what was guided where that is no evidence, and by which loss if not energy."""
    on, loss = recipe.training.guidance_on, recipe.training.guidance_loss
    said = ("" if on == "evidence" else f"-on-{on}") + ("" if loss == "energy" else f"-by-{loss}")
    return recipe.name.replace("-guided", f"-guided{said}", 1)


def trained_by(folders: Sequence[Path]) -> str:
    """The command of each recipe, for any seed."""
    recipes = [load_run(folder).trained_by for folder in folders]
    said = {called(recipe).rsplit("-s", 1)[0]: command(recipe) for recipe in recipes}
    lines = [f"- `{name}`: `{typed}`" for name, typed in said.items()]
    return "\n".join(["\n## How they were trained\n", *lines]) + "\n"


def segmented(ceiling: dict[str, Any]) -> list[str]:
    """What a map could have at best, in a sentence."""
    said = []
    for name in MAPPED:
        (low, high), over = ceiling[name]["ci"], ceiling[name]["less_control"]
        said.append(
            f"{words(name)} {ceiling[name]['mean']:.3f} [{low:.3f}, {high:.3f}], less control "
            f"{over['difference']:+.3f} [{over['low']:.3f}, {over['high']:.3f}] ({over['control']})"
        )
    return [
        "\nFor comparison, a segmenter that was trained on the same masks and answers nothing (a small U-Net, one "
        f"seed, its map within the lungs): {'; '.join(said)}. Its controls are those that look at the film or at "
        "nothing. "
        + of_a_segmenter({name: float(ceiling[name]["less_control"]["difference"]) for name in MAPPED})
        + "People, by the reader study, have not been measured."
    ]


def of_a_segmenter(over: Mapping[str, float]) -> str:
    """By how much what a segmenter has over its closest control misses the goals for maps; empty where it does not."""
    gaps = {name: GOALS[f"{name}_less_control"] - round(over[name], 3) for name in MAPPED}
    missed = [f"{words(name)}, less control by {gap:.3f}" for name, gap in gaps.items() if gap > 0]
    if not missed:
        return ""
    return f"It misses the goals for maps as well, {' and '.join(missed)}; a better one might not. "


def words(measure: str) -> str:
    """A measure as the head of a column."""
    return measure.replace("_", " ").replace(" less control", ", less control").replace(" drawn", ", drawn greys")


def touched(split: str) -> str:
    """What the images of a split were used for besides."""
    if split == "Test":
        return "Test was touched once for each run for this page."
    return f"Epochs were chosen on {split} too."


def asked_for() -> str:
    """The goals in words."""
    said = (f"{words(name)} {'at most' if name in AT_MOST else 'at least'} {goal:g}" for name, goal in GOALS.items())
    return (
        f"{', '.join(said)}; differences and effect with the mean of the seeds' lower ends above 0, and the effect by "
        "drawn greys too"
    )


def told_of(table: pd.DataFrame) -> list[str]:
    """What a table of means tells of: of one that was made before greys were drawn, without these."""
    return [measure for measure in OVER_SEEDS if measure in table]


def means_rows(table: pd.DataFrame) -> list[list[str]]:
    """Each recipe's mean over its seeds, from the rows of the CSV."""
    lines = []
    for _, one in table[table["run"].str.endswith(", mean")].iterrows():
        met, cells = goals_met(one), []
        for measure in told_of(table):
            value, spread = one[measure], one[f"{measure}_spread"]
            cell = "withheld" if np.isnan(value) else f"{value:.3f} ({spread:.3f})"
            if measure in ACCURACIES:
                cell = f"{100 * value:.1f} ({100 * spread:.1f})"
            cells.append(f"**{cell}**" if met.get(measure) else cell)
        lines.append([str(one["recipe"]), str(one["seeds"]), *cells, f"{sum(met.values())} of {len(met)}"])
    return lines


def goals_met(one: pd.Series) -> dict[str, bool]:
    """By measure whether a row reaches the goal; a difference or an effect must also be above 0 at its lower end.

    The lesion effect by the healthy grey, which training may have used, and by drawn greys, which none did.
    """
    met = {m: bool(one[m] <= goal if m in AT_MOST else one[m] >= goal) for m, goal in GOALS.items()}
    met = {m: yes and (m in ACCURACIES or bool(one[f"{m}_low"] > 0)) for m, yes in met.items()}
    if "lesion_effect_drawn" not in one:
        return met
    unseen = one["lesion_effect_drawn"] >= GOALS["lesion_effect"] and one["lesion_effect_drawn_low"] > 0
    return met | {"lesion_effect": met["lesion_effect"] and bool(unseen)}


def nearest(table: pd.DataFrame) -> str:
    """Which recipe meets most goals, and by how much it misses the others; from the rows of the CSV."""
    means = [one for _, one in table[table["run"].str.endswith(", mean")].iterrows()]
    best = max(means, key=lambda one: (sum(goals_met(one).values()), one["worst_case"]))
    gaps = []
    for name, met in goals_met(best).items():
        # Reached by the fill that training knew alone.
        unseen = name == "lesion_effect" and "lesion_effect_drawn" in best and best[name] >= GOALS[name]
        gap = abs(best["lesion_effect_drawn" if unseen else name] - GOALS[name])
        if np.isnan(gap):
            gaps.append(f"{words(name)}, which is withheld")
        elif not met:
            gaps.append(
                ("by drawn greys " if unseen else "")
                + f"{words(name)} by "
                + (f"{100 * gap:.1f} points" if name in ACCURACIES else f"{gap:.3f}")
            )
    if not gaps:
        return f"All goals are met by {best['recipe']}."
    return f"No network meets all goals. The nearest, {best['recipe']}, misses {'; '.join(gaps)}."


def by_fills(found: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[str]]:
    """The runs that were trained with each set of fills."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for run in found:
        if run["fills"]:
            sets.setdefault(tuple(run["fills"]), []).append(run["run"])
    return sets


def share(part: dict[str, Any]) -> str:
    """Accuracy in percent with its interval, and the mean over classes."""
    low, high = part["accuracy_ci"]
    return f"{100 * part['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({100 * part['recall_macro']:.1f})"


def answers_row(found: dict[str, Any]) -> list[str]:
    """A run's accuracies."""
    return [found["run"], *(share(found["answers"][name]) for name in CONDITIONS)]


def maps_rows(found: dict[str, Any]) -> list[list[str]]:
    """A row for each map of a run."""
    rows = []
    for name, part in found["maps"].items():
        cells = [found["run"], name, f"{100 * part['null']:.1f} %"]
        for measure in ("hit_rate", "infection_given_lung"):
            if measure == "hit_rate" and part["withheld"]:
                cells += ["", part["withheld"]]
                continue
            least = closest(part, measure)
            between = f"{least['difference']:+.3f} [{least['low']:+.3f}, {least['high']:+.3f}], {least['control']}"
            cells += [f"{least['value']:.3f}", between]
        low, high = part["by_cause"]["ci"]
        bright = part["brightness_by_cause"]["mean"]
        rows.append([*cells, f"{part['by_cause']['mean']:.2f} [{low:.2f}, {high:.2f}], brightness {bright:.2f}"])
    return rows


def effect(part: dict[str, Any]) -> str:
    """An effect with its interval."""
    low, high = part["effect_ci"]
    return f"{part['effect']:+.3f} [{low:+.3f}, {high:+.3f}]"


def causes_row(found: dict[str, Any]) -> list[str]:
    """What the lesion does to a run's answers."""
    part = cause_of(found, *HEADLINE)
    return [
        found["run"],
        *(f"{part[name]:.2f}" for name in ("before", "without", "beside", "whole")),
        effect(part),
        f"{100 * part['flipped']:.0f} % ({100 * part['flipped_control']:.0f} %)",
        *(effect(cause_of(found, fill, "lung")) for fill in ("mirror", "inpaint", "drawn")),
        effect(cause_of(found, "grey", "background")),
        effect(cause_of(found, *HEADLINE, condition="pgd")),
        effect(found["transplants"]),
    ]


def sizes_row(found: dict[str, Any]) -> list[str]:
    """The effect by the size of the lesion."""
    sizes = cause_of(found, *HEADLINE)["by_size"]
    return [found["run"], *(f"{effect(s | {'effect_ci': (s['low'], s['high'])})} ({s['films']})" for s in sizes)]


def controls_rows(found: dict[str, Any]) -> list[list[str]]:
    """What a run's first map has over every control, a row each: its hit rate, and infection given lung."""
    name, part = first_map(found)
    by_control: dict[str, dict[str, str]] = {}
    for one in part["margins"]:
        over = f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        by_control.setdefault(one["control"], {})[one["measure"]] = over
    measures = ("hit_rate", "infection_given_lung")
    if part["withheld"]:
        by_control = {control: told | {"hit_rate": "withheld"} for control, told in by_control.items()}
    return [[found["run"], name, control, *(told.get(m, "") for m in measures)] for control, told in by_control.items()]


def attacked_row(found: dict[str, Any]) -> list[str]:
    """The lesion effect of films under PGD, by every fill."""
    return [found["run"], *(effect(cause_of(found, fill, "lung", condition="pgd")) for fill in FILLS)]


if __name__ == "__main__":
    main()
