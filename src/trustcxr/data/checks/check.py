"""Can this data set be trusted? `audit(path)` reads every file and says what is there and what is wrong with it."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from trustcxr.data.checks import confounds, duplicates
from trustcxr.data.checks.confounds import Association, Probe
from trustcxr.data.checks.issues import (
    SEVERITIES,
    Issue,
    class_issues,
    confound_issues,
    file_issues,
    image_issues,
    leak_issues,
    mask_issues,
)
from trustcxr.data.checks.scan import Scan, scan
from trustcxr.data.layouts import read_manifest
from trustcxr.data.layouts.covidqu import PUBLISHED
from trustcxr.data.manifest import Manifest, split_rank
from trustcxr.storage.os_errors import escaped

_HEADS = {"fault": "FAULT", "leak": "LEAK", "warning": "WARNING", "note": "note"}
_SOURCES = {
    "lungs blanked": "the image without its lungs",
    "outer frame": "the outer frame of the image",
    "lung shape": "the shape of the lung mask",
    "grey levels": "the image's overall brightness",
}
_KEEP_FIRST = ("Test", "Val")  # what leaks is taken out of the other split, so that test results stay comparable
_SHOWN = 3  # files named under a finding in the terminal


class MaskSummary(TypedDict):
    """How many masks of a kind there are, and how many of them are empty."""

    n: int
    empty: int


class FileSummary(TypedDict):
    """What the images are: name of a format, colour mode or size -> how many; and the masks by their kind."""

    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, int]
    different_sizes: int
    masks: dict[str, MaskSummary]


def _nested(probe: Probe) -> dict[str, object]:
    """Return a probe for JSON, its accuracy as `{"value", "ci"}`."""
    content = asdict(probe)
    return content | {"accuracy": {"value": probe.accuracy, "ci": content.pop("accuracy_ci")}}


@dataclass
class DataAudit:
    """What an audit found. `to_dict()` for JSON, `text()` for the terminal, `clean_manifest()` for what to go on with.

    Attributes:
        manifest: the data set.
        counts: {split: {class: images}}.
        published: the images of each part of COVID-QU-Ex beside those published; `per_class` has both numbers.
        files: formats, colour modes and sizes of the images, and how many masks of each kind there are.
        findings: worst first.
        probes, associations: what tells the classes apart.
        pairs: DataFrame first, second (rows of the manifest), exact, mirrored, inverted, correlation: an image twice.
        unreadable: (N,) bool.
    """

    manifest: Manifest
    counts: dict[str, dict[str, int]]
    published: list[dict[str, Any]]
    files: FileSummary
    findings: list[Issue]
    probes: list[Probe]
    associations: list[Association]
    pairs: pd.DataFrame
    unreadable: np.ndarray
    seconds: float = 0.0
    dropped: pd.DataFrame = field(default_factory=pd.DataFrame)
    probed: bool = True

    def issues_of(self, severity: str) -> list[Issue]:
        """Return the findings of one severity: fault, leak, warning or note."""
        return [f for f in self.findings if f.severity == severity]

    @property
    def verdict(self) -> str:
        """Whether the data can be trusted, in a sentence or three."""
        parts = []
        if faults := self.issues_of("fault"):
            parts.append(f"Mend it first: {_joined(f.text for f in faults)}.")
        if leaks := self.issues_of("leak"):
            parts.append(f"Results on it would flatter: {_joined(f.text for f in leaks)}.")
        beyond = [p for p in self.probes if p.view in confounds.WITHOUT_LUNGS and p.above_chance]
        if beyond:
            best = max(beyond, key=lambda p: p.accuracy)
            parts.append(
                f"A model can score {best.accuracy:.2f} (chance {best.chance:.2f}) from {_SOURCES[best.view]}: "
                "high accuracy on these data is no proof that it reads the lungs."
            )
        others = [f for f in self.issues_of("warning") if f.kind != "confound"]
        if others:
            parts.append(f"Look at this: {_joined(f.text for f in others)}.")
        if parts:
            return " ".join(parts)
        why = "too few images for confounds" if self.probed else "confounds were not to be looked for"
        looked = "faults, leaks and confounds" if self.probes else f"faults and leaks ({why})"
        return f"Nothing found of the {looked} that were looked for."

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "data": self.manifest.root.name,
            "layout": self.manifest.layout,
            "classes": list(self.manifest.classes),
            "images": len(self.manifest.table),
            "counts": self.counts,
            "published": self.published,
            "files": self.files,
            "notes": self.manifest.notes,
            "probes": [_nested(p) for p in self.probes],
            "associations": [asdict(a) for a in self.associations],
            "findings": [asdict(f) for f in self.findings],
            "verdict": self.verdict,
            "seconds": round(self.seconds, 1),
        }

    def text(self) -> str:
        """A summary for the terminal, in which no name moves the cursor."""
        lines = [f"{self.manifest.root.name}: {len(self.manifest.table):,} images, layout {self.manifest.layout}", ""]
        lines += [*self.count_table().to_string().splitlines(), ""]
        lines += [p["text"] for p in self.published]
        lines += self.file_lines()
        lines += self.manifest.notes
        if self.probes:
            first = self.probes[0]
            lines += ["", f"A linear probe tells the classes apart ({first.how}; chance {first.chance:.2f})"]
            rows = {p.view: (f"{p.accuracy:.2f}", "{:.2f} to {:.2f}".format(*p.accuracy_ci)) for p in self.probes}
            head = ["balanced accuracy", "95 % CI"]
            lines += pd.DataFrame.from_dict(rows, orient="index", columns=head).to_string().splitlines()
        lines += ["", "Found" if self.findings else "Found nothing wrong"]
        for finding in self.findings:
            lines.append(f"  {_HEADS[finding.severity]:8} {finding.text}")
            for item in finding.items[:_SHOWN]:
                other = f" and {item['other_id']}" if "other_id" in item else ""
                detail = f": {item['detail']}" if item.get("detail") else ""
                lines.append(f"             {item['sample_id']}{other}{detail}")
            if len(finding.items) > _SHOWN:
                lines.append(f"             and {len(finding.items) - _SHOWN:,} more")
        return "\n".join(map(escaped, [*lines, "", f"Verdict  {self.verdict}"]))

    def count_table(self) -> pd.DataFrame:
        """Return the images by split (rows) and class (columns), with sums, written with thousands separators."""
        splits = sorted(self.counts, key=split_rank)
        table = pd.DataFrame([self.counts[split] for split in splits], index=splits, columns=self.manifest.classes)
        table["all"] = table.sum(axis=1)
        if len(table) > 1:
            table.loc["all"] = table.sum()
        return table.map("{:,}".format)

    def file_lines(self) -> list[str]:
        """Return lines about the files: formats, colour modes, sizes and masks."""

        def listed(counts: dict[str, int]) -> str:
            return ", ".join(f"{k} {n:,}" for k, n in list(counts.items())[:4])

        files, sizes = self.files, listed(self.files["sizes"])
        many = files["different_sizes"] > 1
        size = (
            f"{files['different_sizes']:,} sizes, most often {sizes}"
            if many
            else f"size {next(iter(files['sizes']), '')}"
        )
        return [
            f"formats: {listed(files['formats'])}; colour modes: {listed(files['modes'])}; {size}",
            *(f"{kind} masks: {m['n']:,}, {m['empty']:,} of them empty" for kind, m in files["masks"].items()),
        ]

    def clean_manifest(self) -> Manifest:
        """The manifest without what cannot be read, what leaks between splits, and what carries two classes.

        What leaks stays in Test, else in Val. What was taken out, and why, is then in `dropped` (the manifest's
        columns and `dropped`, the reason); `write_clean` puts both in one file.
        """
        table = self.manifest.table
        reasons = np.full(len(table), None, dtype=object)
        reasons[self.unreadable] = "cannot be read"
        images = self.pairs[["first", "second"]].to_numpy(np.int64)
        _mark_conflicts(table, duplicates.find_clusters(len(table), images), reasons)
        ties = [images, *(_chain(table[column]) for column in ("patient", "group"))]
        _mark_leaks(table, duplicates.find_clusters(len(table), np.concatenate(ties)), reasons)
        out = pd.notna(reasons)
        self.dropped = table[out].assign(dropped=reasons[out]).reset_index(drop=True)
        return self.manifest.select(~out)

    def write_clean(self, path: str | Path) -> Manifest:
        """Write clean_manifest() as .parquet or .csv, with what was dropped and why in a column `dropped`."""
        clean = self.clean_manifest()
        clean.write(path, dropped=self.dropped)
        return clean


def check_data(
    data: str | Path | Manifest,
    *,
    layout: str = "auto",
    columns: str | Mapping[str, str | int] | None = None,
    images: str | Path | None = None,
    workers: int | None = None,
    probes: bool = True,
    seed: int = 0,
) -> DataAudit:
    """Read every file of a data set and look for faults, leaks between splits, and confounds.

    `data` is a folder, a list of images or a Manifest; `layout`, `columns` and `images` as in read_manifest; `workers`
    the processes that read (default: one a core). Without `probes`, confounds are not looked for. Raises UserError for
    a folder that is not understood; a file that cannot be read is a finding.

    >>> import tempfile, trustcxr as tx
    >>> from trustcxr.data.phantom import write
    >>> folder = tempfile.TemporaryDirectory()
    >>> images = write(f"{folder.name}/images", {"Train": 2, "Test": 1}, size=32)
    >>> found = tx.data.audit(images, workers=1, probes=False)
    >>> found.counts["Test"], found.issues_of("fault")
    ({'COVID-19': 1, 'Non-COVID': 1, 'Normal': 1}, [])
    """
    started = time.perf_counter()
    manifest = (
        data if isinstance(data, Manifest) else read_manifest(data, layout=layout, columns=columns, images=images)
    )
    read = scan(manifest, workers=workers)
    digests = [d if isinstance(d, str) else None for d in read.files["pixels"]]
    pairs = duplicates.find_duplicates(digests, read.thumbs, read.trimmed, seed=seed)
    same_image = duplicates.find_clusters(len(manifest.table), pairs[["first", "second"]].to_numpy(np.int64))
    tried = confounds.run_probes(manifest, read, seed=seed) if probes else []
    linked = confounds.measure_associations(manifest, read)
    published, surplus = _against_published(manifest)
    findings = [
        *file_issues(manifest, read),
        *class_issues(manifest),
        *image_issues(manifest, read),
        *mask_issues(manifest, read, same_image),
        *leak_issues(manifest, pairs),
        *confound_issues(tried, linked),
        *surplus,
    ]
    findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    files = _file_summary(read)
    seconds = time.perf_counter() - started
    counts = manifest.counts()
    unreadable = ~read.readable
    return DataAudit(
        *(manifest, counts, published, files, findings, tried, linked, pairs, unreadable, seconds),
        probed=probes,
    )


def _against_published(manifest: Manifest) -> tuple[list[dict[str, Any]], list[Issue]]:
    """The counts beside the published ones, for COVID-QU-Ex; a finding where there are more than were published."""
    table = manifest.table
    known = next(iter(PUBLISHED.values()))
    if manifest.layout != "covidqu" or set(manifest.classes) != set(known) or (table["source"] == "phantom").all():
        return [], []
    in_infection = table["infection_mask"].notna()
    lines: list[dict[str, Any]] = []
    surplus: list[Issue] = []
    for part, rows in zip(PUBLISHED, (~in_infection | True, in_infection), strict=True):
        counts = table[rows]["class"].value_counts()
        per_class = {c: [int(counts.get(c, 0)), n] for c, n in PUBLISHED[part].items()}
        count, total = sum(n for n, _ in per_class.values()), sum(PUBLISHED[part].values())
        if not count:
            continue
        more = [c for c, (n, of) in per_class.items() if n > of]
        said = "all of" if all(n == of for n, of in per_class.values()) else "a subset of"
        classes = ", ".join(f"{c} {n:,} of {of:,}" for c, (n, of) in per_class.items())
        text = f"{count:,} images: {'not' if more else said} the {total:,} published in {part} ({classes})"
        said = "more than" if more else said
        lines.append({"part": part, "said": said, "count": count, "of": total, "per_class": per_class, "text": text})
        if more:
            told = f"more images of {', '.join(more)} than were published in {part}"
            surplus.append(Issue("more_than_published", "warning", told, len(more)))
    return lines, surplus


def _file_summary(read: Scan) -> FileSummary:
    files = read.files[read.readable]
    sizes = Counter(f"{w:.0f} x {h:.0f}" for w, h in zip(files["width"], files["height"], strict=True))
    masks: dict[str, MaskSummary] = {}
    for kind, table in read.masks.items():
        masks[kind] = {"n": int(table["digest"].notna().sum()), "empty": int((table["share"] == 0).sum())}
    return {
        "formats": dict(Counter(f or "?" for f in files["format"]).most_common()),
        "modes": dict(Counter(m or "?" for m in files["mode"]).most_common()),
        "sizes": dict(sizes.most_common(12)),
        "different_sizes": len(sizes),
        "masks": masks,
    }


def _chain(values: "pd.Series[Any]") -> np.ndarray:
    """Pairs (M, 2) of rows that tie together all rows of the same known value."""
    order = np.argsort(pd.factorize(values)[0], kind="stable")
    codes = pd.factorize(values)[0][order]
    same = (codes[1:] == codes[:-1]) & (codes[1:] >= 0)
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def _mark_conflicts(table: pd.DataFrame, images: np.ndarray, reasons: np.ndarray) -> None:
    labels = table["class"].groupby(images).transform("nunique").to_numpy()
    reasons[labels > 1] = "the same image carries two classes"


def _mark_leaks(table: pd.DataFrame, tied: np.ndarray, reasons: np.ndarray) -> None:
    """Of the rows that hang together over several splits, keep those of Test, else of Val."""
    split, sample = table["split"].to_numpy(str), table["sample_id"].to_numpy(str)
    still = np.flatnonzero(pd.isna(reasons))
    places = pd.DataFrame({"cluster": tied[still], "split": split[still]}).drop_duplicates()["cluster"].value_counts()
    for cluster in places.index[places > 1]:
        members = still[tied[still] == cluster]
        splits = set(split[members])
        kept = next((s for s in _KEEP_FIRST if s in splits), min(splits))
        inside = split[members] == kept
        reason = f"the same image, patient or group as {sample[members[inside][0]]} in {kept}"
        reasons[members[~inside]] = reason


def _joined(texts: Any) -> str:
    return "; ".join(texts)
