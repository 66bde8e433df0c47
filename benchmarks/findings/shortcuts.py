"""What runs answer by: accuracy with the lungs blacked out, alone, as a silhouette, on a film of another class.

python -m benchmarks.findings.shortcuts RUN... --data COVID-QU-Ex [--split Val] > results/shortcuts-covidqu-mini.md

A network can learn what blacked-out lungs look like, say nothing there, and go on reading the background: that is why
the last column stands beside the first. Nothing is attacked.
"""

import argparse
from pathlib import Path

from trustcxr import catalogue
from trustcxr.data import load_dataset
from trustcxr.evaluation import metrics, predictions
from trustcxr.evaluation.run import as_before_refit, load_run
from trustcxr.report import markdown, words
from trustcxr.results import files, folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="Val")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    rows, counted = [], ""
    for folder in given.runs:
        run = load_run(folder)
        if given.split == run.trained_by.data.splits.val:  # on which the weights of a second training have been trained
            run = as_before_refit(run)
        data = load_dataset(given.data, split=given.split, **run.trained_by.data.reading())
        found = metrics.from_predictions(predictions.predict(run, data), run.classes)
        shares = [found.clean.accuracy, *(found.shortcuts[view].accuracy for view in catalogue.VIEWS)]
        epochs = str(files.read_json(folder / folders.TRAINING_FILE)["epochs"])
        rows.append(
            [
                run.trained_by.model.name,
                words.way(run.trained_by.defence.name, run.trained_by.background),
                epochs,
                *map(markdown.percent, shares),
            ]
        )
        counted = (
            f"{len(data)} {given.split} images of {given.data.resolve().name}, those with a lung mask in all but clean"
        )
    head = ["model", "training", "epochs", "clean", *(view.replace("_", " ") for view in catalogue.VIEWS)]
    print("# What networks answer by\n")
    print(
        f"`python -m benchmarks.findings.shortcuts RUN... --data {given.data.name} --split {given.split}`. "
        f"{counted}; one seed; percent answered rightly, with 95 % intervals. A constant answer has 33.3. In "
        f"the last column the film around "
        "the lungs is one of another class and the label is the lungs': a network that answers by the lungs has its "
        "clean accuracy there, one that answers by the background 0, one that uses neither 33.3. The lungs of the film "
        "behind are not quite covered. Research software, not for diagnosis.\n"
    )
    if given.note:
        print(given.note + "\n")
    print("\n".join(markdown.table(head, rows)))


if __name__ == "__main__":
    main()
