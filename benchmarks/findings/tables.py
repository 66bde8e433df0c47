"""Write the tables of results/ from a finished study: every figure as CSV, and a page to read.

    trustcxr study robustness --data COVID-QU-Ex --out out/robustness
    python -m benchmarks.findings.tables out/robustness --external external-cxr
    trustcxr study lungs --data COVID-QU-Ex --out out/lungs
    python -m benchmarks.findings.tables out/lungs

It is what `trustcxr report STUDY --markdown` writes into the study's folder. No number is typed by hand: each is read
from study.json or metrics.json, with its interval and its count.
"""

import argparse
from pathlib import Path

from trustcxr.catalogue import USUAL_ATTACKS
from trustcxr.report import markdown
from trustcxr.report.figures.accuracy import radii
from trustcxr.report.study_folder import Run, read
from trustcxr.results import folders
from trustcxr.study import comparison, run_folder

RESULTS = Path(__file__).resolve().parents[2] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--external", type=Path, help="data from elsewhere, on which every run is evaluated too")
    parser.add_argument("--note", default="", help="what the figures do not tell, such as how the study was run")
    given = parser.parse_args()
    folder = folders.check_study(given.study)
    found = read(folder)
    if given.external:
        evaluate_elsewhere(found.runs, given.external)
    name = f"{found.study.study}-{found.study.data.root_name}"
    beyond = comparison.beyond_activations(folder)
    for path in markdown.write(folder, beyond=beyond, note=given.note, out=RESULTS, name=name):
        print(path)


def evaluate_elsewhere(runs: list[Run], data: Path) -> None:
    """Each run on data from elsewhere, unless it was: clean, FGSM and PGD at the largest epsilon of the study."""
    epsilon = max(radii(runs))
    for run in runs:
        if not any(name.startswith(f"{data.resolve().name}-") for name in run.evaluations):
            run_folder.evaluate(run.folder, data, attacks=USUAL_ATTACKS, epsilons=[epsilon])


if __name__ == "__main__":
    main()
