"""Write the README's table from a finished study, its figure from a finished demo, and the table of results/.

    python -m benchmarks.readme out/quick out/demo

No number in the README is typed by hand: each is read from study.json, with its interval.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.tables import write_rows
from trustcxr import report
from trustcxr.results import files, folders

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"(<!-- table: .*? -->\n).*?(<!-- /table -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("demo", type=Path, nargs="?")
    arguments = parser.parse_args()
    study = files.read_json(folders.check_study(arguments.study) / folders.STUDY_RESULTS)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(MARK.sub(lambda m: m[1] + table(study) + m[2], text), encoding="utf-8")
    write_rows(study, ROOT / "results" / f"{study['study']}-{study['data']['root_name']}.csv")
    if arguments.demo:
        demo = files.read_json(folders.check_study(arguments.demo) / folders.STUDY_RESULTS)
        robust = next(run for run in demo["runs"] if run["defence"] != "standard")
        picture = ROOT / "docs" / "figures" / "readme.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        report.readme_figure(arguments.demo, robust["model"], picture)
        with Image.open(picture) as image:
            small = image.convert("RGB").resize(
                (1400, round(1400 * image.height / image.width)), Image.Resampling.LANCZOS
            )
        small.save(picture, optimize=True)
    print(table(study))


def share(part: dict[str, Any], key: str, digits: int = 1) -> str:
    low, high = (100 * v for v in part[f"{key}_ci"])
    return f"{100 * part[key]:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


def plain(part: dict[str, Any], key: str) -> str:
    low, high = part[f"{key}_ci"]
    return f"{part[key]:.3f} [{low:.3f}, {high:.3f}], chance {part[f'{key}_chance']:.3f}"


def attacked(run: dict[str, Any], name: str, epsilon: float) -> dict[str, Any]:
    found = [a for a in run["attacks"] if a["attack"] == name and a["epsilon"] == epsilon]
    return min(found, key=lambda a: a["accuracy"])


def table(study: dict[str, Any]) -> str:
    """The README's table in Markdown, with what it takes to read it underneath."""
    runs = sorted(study["runs"], key=lambda r: (r["model"], r["defence"] != "standard"))
    epsilon = max(a["epsilon"] for a in runs[0]["attacks"])
    steps = next(a["steps"] for a in runs[0]["attacks"] if a["attack"] == "pgd")
    lines = [
        f"| model | training | clean | FGSM {epsilon:g} | PGD-{steps} {epsilon:g} | infection energy (Grad-CAM) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        columns = [
            run["model"],
            run["defence"],
            share(run["clean"], "accuracy"),
            share(attacked(run, "fgsm", epsilon), "accuracy"),
            share(attacked(run, "pgd", epsilon), "accuracy"),
            plain(run["saliency"]["gradcam"], "infection_energy"),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    n, masks = runs[0]["clean"]["n"], runs[0]["saliency"]["gradcam"]["n"]
    hardware, data = study["hardware"], study["data"]
    lines += [
        "",
        f"<sub>`trustcxr study {study['study']} --data {data['root_name']}` (a reduced copy of the real COVID-QU-Ex): "
        f"{n} {runs[0]['split']} images, {masks} of them with an infection mask; {data['size']} pixels; one seed; "
        f"accuracy with 95 % intervals over {runs[0]['clean']['groups']} patients or groups of images. Trained and "
        f"tested in {study['seconds'] / 60:.0f} minutes on {hardware['cores']} cores ({hardware['processor']}). "
        f"Alarms raised: {len(study['alarms'])}. Every figure: `results/`.</sub>",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
