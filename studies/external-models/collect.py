"""Collect the audits of external models: a row for each model and data set.

    python studies/external-models/collect.py AUDIT... > studies/external-models/results.csv

AUDIT is a folder with audit.json. Shares have their 95 % interval in the columns NAME_low and NAME_high.
"""

import csv
import sys
from pathlib import Path

from trustcxr.storage.schemas import AuditDocument, Share, read_schema

NO_SHARE = Share()


def make_row(document: AuditDocument) -> dict[str, object]:
    """Return what the study needs of one audit."""
    under = {(row.attack, row.epsilon): row.accuracy for row in document.attacks}
    views = document.shortcuts
    shares = {
        "clean": document.clean.accuracy,
        "balanced": document.clean.balanced_accuracy,
        "square_0.02": under.get(("square", 0.02), NO_SHARE),
        "pgd_0.005": under.get(("pgd", 0.005), NO_SHARE),
        "worst_0.02": under.get(("worst-case", 0.02), NO_SHARE),
        "corrupted": document.corruptions_mean.accuracy if document.corruptions_mean else NO_SHARE,
        "lungs_hidden": document.without_lungs.accuracy if document.without_lungs else NO_SHARE,
        "lungs_only": views["lungs_only"].accuracy if "lungs_only" in views else NO_SHARE,
        "ece": document.clean.ece,
    }
    row: dict[str, object] = {"model": document.model.name, "sha256": document.model.sha256[:12]}
    row |= {"data": document.data.name, "split": document.split, "n": document.clean.n}
    row |= {"protocol": document.protocol, "gradients": document.model.gradients, "sound": document.verdict.sound}
    row |= {"constant": document.clean.constant_answer}
    hidden = document.without_lungs
    row |= {"n_hidden": hidden.n if hidden else None, "constant_hidden": hidden.constant_answer if hidden else None}
    for name, share in shares.items():
        low, high = share.interval or (None, None)
        row |= {name: share.value, f"{name}_low": low, f"{name}_high": high}
    return row | {"reasons": "; ".join(document.verdict.reasons)}


def main() -> None:
    """Write the table of the audits that are named."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    rows = [make_row(read_schema(AuditDocument, Path(folder) / "audit.json")) for folder in sys.argv[1:]]
    table = csv.DictWriter(sys.stdout, rows[0])
    table.writeheader()
    table.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
