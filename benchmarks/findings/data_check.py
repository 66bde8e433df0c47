"""What `trustcxr data check` finds in a data set, as a page of results/.

    trustcxr data check COVID-QU-Ex --json > check.json
    python -m benchmarks.findings.data_check check.json > results/data-check-covidqu-mini.md

No network of this package is tested: the probes are linear models on thumbnails.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from trustcxr.report import markdown
from trustcxr.results.documents import Share

HEAD = ("a linear model sees", "accuracy", "chance", "trained on", "tested on", "how")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", type=Path, help="what `trustcxr data check --json` printed")
    print(page(json.loads(parser.parse_args().check.read_text(encoding="utf-8"))))


def page(found: dict[str, Any]) -> str:
    """The page of one data set."""
    name, command = found["data"], "`python -m benchmarks.findings.data_check check.json`"
    about = f"`trustcxr data check {name} --json > check.json`, then {command}. {found['images']} images of {name}; "
    about += "accuracy in percent with 95 % intervals. Research software, not for diagnosis."
    told = [[entry["severity"], str(entry["count"]), entry["text"]] for entry in found["findings"]]
    probes = [[p["view"], _share(p), f"{100 * p['chance']:.1f}", *map(str, (p["trained_on"], p["tested_on"], p["how"]))]
              for p in found["probes"]]  # fmt: skip
    tables = [*markdown.table(HEAD, probes), "", *markdown.table(("severity", "count", "what was found"), told)]
    return "\n".join([f"# What gives the class away in {name}", "", about, "", *tables])


def _share(probe: dict[str, Any]) -> str:
    return markdown.percent(Share(value=probe["accuracy"], ci=tuple(probe["accuracy_ci"])))


if __name__ == "__main__":
    main()
