"""Write the README's table from a finished study, its figure from a finished demo, and the table of results/.

    python -m benchmarks.findings.readme out/quick out/demo

No number in the README is typed by hand: each is read from study.json, with its interval.
"""

import argparse
import re
from pathlib import Path

from PIL import Image

from trustcxr import report
from trustcxr.catalogue import USUAL_ATTACKS
from trustcxr.report import markdown, ranking, rows, words
from trustcxr.report.figures.accuracy import radii
from trustcxr.report.study_folder import StudyFolder, read
from trustcxr.results import folders
from trustcxr.results.documents import Figure, Share

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"(<!-- table: .*? -->\n).*?(<!-- /table -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("demo", type=Path, nargs="?")
    arguments = parser.parse_args()
    study = read(folders.check_study(arguments.study))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(MARK.sub(lambda m: m[1] + table(study) + m[2], text), encoding="utf-8")
    rows.write_figures(study.runs, ROOT / "results" / f"{study.study.study}-{study.study.data.root_name}.csv")
    if arguments.demo:
        demo = read(folders.check_study(arguments.demo))
        robust = next(run for run in demo.runs if run.defence != words.STANDARD)
        picture = ROOT / "docs" / "figures" / "readme.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        report.readme_figure(arguments.demo, robust.model, picture)
        with Image.open(picture) as image:
            small = image.convert("RGB").resize(
                (1400, round(1400 * image.height / image.width)), Image.Resampling.LANCZOS
            )
        small.save(picture, optimize=True)
    print(table(study))


def share(found: Share) -> str:
    return markdown.percent(found).replace(" [", " % [")


def beside_chance(figure: Figure) -> str:
    return f"{markdown.decimal(figure)}, chance {words.decimal(figure.chance)}"


def table(found: StudyFolder) -> str:
    """The README's table in Markdown, with what it takes to read it underneath."""
    runs = [run for group in ranking.by_model(sorted(found.runs, key=lambda run: run.model)).values() for run in group]
    study, first, epsilon = found.study, runs[0], max(radii(runs))
    names = ranking.attacks_at(runs, epsilon)
    head = ["model", "training", "clean", *(f"{names[name]} {epsilon:g}" for name in USUAL_ATTACKS)]
    lines = [
        [
            run.model,
            run.defence,
            share(run.clean.accuracy),
            *(share(run.attacked(name, epsilon).accuracy) for name in USUAL_ATTACKS),
            beside_chance(run.saliency_methods()["gradcam"].figure("infection_energy")),
        ]
        for run in runs
    ]
    masks = first.saliency_methods()["gradcam"].n
    data = study.data
    under = (
        f"<sub>`trustcxr study {study.study} --data {data.root_name}` (a reduced copy of the real COVID-QU-Ex): "
        f"{first.clean.n} {first.metrics.split} images, {masks} of them with an infection mask; {data.size} pixels; "
        f"one seed; accuracy with 95 % intervals over {first.clean.groups} patients or groups of images. Every figure: "
        f"`results/{study.study}-{data.root_name}.csv`; how often these images were opened: "
        "`results/test-openings.csv`.</sub>"
    )
    return "\n".join([*markdown.table([*head, "infection energy (Grad-CAM)"], lines), "", under, ""])


if __name__ == "__main__":
    main()
