"""Check a data set: read every file, and report its content, faults, leaks and confounds, also as an HTML page."""

import base64
import io
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from trustcxr.console import format_duration, plural, track
from trustcxr.data.checks import confounds, duplicates, issues
from trustcxr.data.checks.confounds import VIEWS, WITHOUT_LUNGS, Association, Probe
from trustcxr.data.checks.issues import SEVERITIES, Issue
from trustcxr.data.checks.scan import Scan, scan
from trustcxr.data.images.greyscale import UnreadableImage
from trustcxr.data.images.read import read_image, resize_image
from trustcxr.data.layouts import read_manifest
from trustcxr.data.layouts.folders import PUBLISHED, compare_with_published
from trustcxr.data.manifest import Manifest, split_rank
from trustcxr.storage.atomic import write_text
from trustcxr.storage.os_errors import escaped
from trustcxr.version import NOTICE

_HEADS = {"fault": "FAULT", "leak": "LEAK", "warning": "WARNING", "note": "note"}
_KEEP_FIRST = ("Test", "Val")  # leaks are removed from the other splits, so that test results stay comparable
SIDE = 128  # pixels of an image on the page
_FILES, _IMAGES, _MEAN_OF = 24, 6, 200  # of a finding, of a class, of its mean image
_SHOWN = 3  # files listed below a finding in the terminal


def _nested(probe: Probe) -> dict[str, object]:
    content = asdict(probe)
    return content | {"accuracy": {"value": probe.accuracy, "ci": content.pop("accuracy_ci")}}


@dataclass
class DataAudit:
    """The results of a check: `to_dict()` for JSON, `text()` for the terminal, `clean_manifest()` without faulty rows.

    Attributes:
        manifest: the data set.
        counts: {split: {class: images}}.
        published: images of each part of COVID-QU-Ex compared with those published; `per_class` has both numbers.
        files: formats, colour modes and sizes of the images, and numbers of masks.
        findings: issues, worst first.
        probes, associations: features that predict the class.
        pairs: DataFrame first, second (rows of the manifest), exact, mirrored, inverted, correlation of duplicates.
        unreadable: (N,) bool.
    """

    manifest: Manifest
    counts: dict[str, dict[str, int]]
    published: list[dict[str, Any]]
    files: dict[str, Any]
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
        """Summary in a few sentences."""
        parts = []
        if faults := self.issues_of("fault"):
            parts.append(f"Mend it first: {'; '.join(f.text for f in faults)}.")
        if leaks := self.issues_of("leak"):
            parts.append(f"Results on it would flatter: {'; '.join(f.text for f in leaks)}.")
        if confounded := [p for p in self.probes if p.view in WITHOUT_LUNGS and p.above_chance]:
            best = max(confounded, key=lambda p: p.accuracy)
            parts.append(
                f"A model can score {best.accuracy:.2f} (chance {best.chance:.2f}) from {WITHOUT_LUNGS[best.view]}: "
                "high accuracy on these data is no proof that it reads the lungs."
            )
        if others := [f for f in self.issues_of("warning") if f.kind != "confound"]:
            parts.append(f"Look at this: {'; '.join(f.text for f in others)}.")
        if parts:
            return " ".join(parts)
        if self.probes:
            return "No faults, leaks or confounds found."
        reason = "There are too few images to find confounds" if self.probed else "Confounds were not checked"
        return f"No faults or leaks found. {reason}."

    def to_dict(self) -> dict[str, object]:
        """Return all results for JSON."""
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
        """Return a summary for the terminal, with control characters of names escaped."""
        count = plural(len(self.manifest.table), "image")
        lines = [f"{self.manifest.root.name}: {count}, layout {self.manifest.layout}", ""]
        lines += [*self.count_table().to_string().splitlines(), "", *self.content_lines()]
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
        """Return numbers of images by split (rows) and class (columns), with sums and thousands separators."""
        splits = sorted(self.counts, key=split_rank)
        table = pd.DataFrame([self.counts[split] for split in splits], index=splits, columns=self.manifest.classes)
        table["all"] = table.sum(axis=1)
        if len(table) > 1:
            table.loc["all"] = table.sum()
        return table.map("{:,}".format)

    def content_lines(self) -> list[str]:
        """Return lines of text about published images, formats, colour modes, sizes, masks and notes."""

        def listed(counts: dict[str, int]) -> str:
            return ", ".join(f"{k} {n:,}" for k, n in list(counts.items())[:4])

        files = self.files
        size = f"size {next(iter(files['sizes']), '')}"
        if files["different_sizes"] > 1:
            size = f"{files['different_sizes']:,} sizes, most often {listed(files['sizes'])}"
        return [
            *(p["text"] for p in self.published),
            f"formats: {listed(files['formats'])}; colour modes: {listed(files['modes'])}; {size}",
            *(f"{kind} masks: {m['n']:,}, {m['empty']:,} of them empty" for kind, m in files["masks"].items()),
            *self.manifest.notes,
        ]

    def clean_manifest(self) -> Manifest:
        """Return the manifest without unreadable images, leaks between splits and images with two classes.

        Leaks stay in Test, else in Val. Sets `dropped`: the removed rows, with the reason in a column `dropped`.
        """
        table = self.manifest.table
        reasons = np.full(len(table), None, dtype=object)
        reasons[self.unreadable] = "cannot be read"
        images = self.pairs[["first", "second"]].to_numpy(np.int64)
        labels = table["class"].groupby(duplicates.find_clusters(len(table), images)).transform("nunique")
        reasons[(labels > 1).to_numpy()] = "the same image carries two classes"
        ties = [images, *(_chain(table[column]) for column in ("patient", "group"))]
        _mark_leaks(table, duplicates.find_clusters(len(table), np.concatenate(ties)), reasons)
        out = pd.notna(reasons)
        self.dropped = table[out].assign(dropped=reasons[out]).reset_index(drop=True)
        return self.manifest.select(~out)

    def write_clean(self, path: str | Path) -> Manifest:
        """Write clean_manifest() as .parquet or .csv, with the dropped rows and the reason in a column `dropped`."""
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
) -> DataAudit:
    """Read every file of a data set and check for faults, leaks between splits, and confounds.

    `data`: a folder, a list of images or a Manifest. `layout`, `columns` and `images`: as in read_manifest. `workers`:
    processes (default: one for each core). `probes` False skips confounds. Raises UserError for an unknown layout; an
    unreadable file is a finding.

    >>> import tempfile, trustcxr as tx
    >>> from trustcxr.data.phantom import write
    >>> folder = tempfile.TemporaryDirectory()
    >>> images = write(f"{folder.name}/images", {"Train": 2, "Test": 1}, size=32)
    >>> audit = tx.data.check_data(images, workers=1, probes=False)
    >>> audit.counts["Test"], audit.issues_of("fault")
    ({'COVID-19': 1, 'Non-COVID': 1, 'Normal': 1}, [])
    """
    started = time.perf_counter()
    manifest = (
        data if isinstance(data, Manifest) else read_manifest(data, layout=layout, columns=columns, images=images)
    )
    files = scan(manifest, workers=workers)
    digests = [d if isinstance(d, str) else None for d in files.files["pixels"]]
    pairs = duplicates.find_duplicates(digests, files.thumbs, files.trimmed)
    same_image = duplicates.find_clusters(len(manifest.table), pairs[["first", "second"]].to_numpy(np.int64))
    fitted = confounds.run_probes(manifest, files) if probes else []
    associations = confounds.measure_associations(manifest, files)
    published, surplus = _compare_with_published(manifest)
    findings = [
        *issues.file_issues(manifest, files),
        *issues.class_issues(manifest),
        *issues.image_issues(manifest, files),
        *issues.mask_issues(manifest, files, same_image),
        *issues.leak_issues(manifest, pairs),
        *issues.confound_issues(fitted, associations),
        *surplus,
    ]
    findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    results = (manifest.counts(), published, _file_summary(files), findings, fitted, associations, pairs)
    return DataAudit(manifest, *results, ~files.readable, time.perf_counter() - started, probed=probes)


def _compare_with_published(manifest: Manifest) -> tuple[list[dict[str, Any]], list[Issue]]:
    """Compare the counts of COVID-QU-Ex with those published; a finding if there are more."""
    table = manifest.table
    expected = set(next(iter(PUBLISHED.values())))
    if manifest.layout != "covidqu" or set(manifest.classes) != expected or (table["source"] == "phantom").all():
        return [], []
    lines: list[dict[str, Any]] = []
    surplus: list[Issue] = []
    for part, per_class in compare_with_published(manifest).items():
        count, total = (sum(numbers) for numbers in zip(*per_class.values(), strict=True))
        if not count:
            continue
        more = [c for c, (n, of) in per_class.items() if n > of]
        whole = all(n == of for n, of in per_class.values())
        relation = "more than" if more else "all of" if whole else "a subset of"
        classes = ", ".join(f"{c} {n:,} of {of:,}" for c, (n, of) in per_class.items())
        text = f"{count:,} images: {'not' if more else relation} the {total:,} published in {part} ({classes})"
        numbers = {"count": count, "of": total, "per_class": per_class}
        lines.append({"part": part, "said": relation, **numbers, "text": text})
        if more:
            problem = f"more images of {', '.join(more)} than were published in {part}"
            surplus.append(Issue("more_than_published", "warning", problem, len(more)))
    return lines, surplus


def _file_summary(read: Scan) -> dict[str, Any]:
    files = read.files[read.readable]
    sizes = Counter(f"{w:.0f} x {h:.0f}" for w, h in zip(files["width"], files["height"], strict=True))
    masks = {
        kind: {"n": int(table["digest"].notna().sum()), "empty": int((table["share"] == 0).sum())}
        for kind, table in read.masks.items()
    }
    return {
        "formats": dict(Counter(f or "?" for f in files["format"]).most_common()),
        "modes": dict(Counter(m or "?" for m in files["mode"]).most_common()),
        "sizes": dict(sizes.most_common(12)),
        "different_sizes": len(sizes),
        "masks": masks,
    }


def _chain(values: "pd.Series[Any]") -> np.ndarray:
    """Return pairs (M, 2) that link all rows with the same known value."""
    codes = pd.factorize(values)[0]
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    same = (codes[1:] == codes[:-1]) & (codes[1:] >= 0)
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def _mark_leaks(table: pd.DataFrame, tied: np.ndarray, reasons: np.ndarray) -> None:
    """Mark rows of a cluster over several splits, except those in Test, else in Val."""
    split, sample = table["split"].to_numpy(str), table["sample_id"].to_numpy(str)
    rows = np.flatnonzero(pd.isna(reasons))
    splits = pd.DataFrame({"cluster": tied[rows], "split": split[rows]}).drop_duplicates()["cluster"].value_counts()
    for cluster in splits.index[splits > 1]:
        members = rows[tied[rows] == cluster]
        names = set(split[members])
        remaining = next((s for s in _KEEP_FIRST if s in names), min(names))
        inside = split[members] == remaining
        reasons[members[~inside]] = f"the same image, patient or group as {sample[members[inside][0]]} in {remaining}"


# The page -------------------------------------------------------------------------------------------------------------


def write_page(audit: DataAudit, path: str | Path) -> Path:
    """Write the page to `path` and return it; reads the images shown again. Raises UserError if it cannot write."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("trustcxr.data.checks", "templates"), autoescape=True)
    page = environment.get_template("audit.html.j2").render(
        audit=audit,
        notice=NOTICE,
        seconds=format_duration(audit.seconds),
        views=VIEWS,
        without=WITHOUT_LUNGS,
        mean_of=_MEAN_OF,
        side=SIDE,
        good=not any(audit.issues_of(s) for s in ("fault", "leak", "warning")),
        counts=Markup(audit.count_table().to_html(border=0)),
        sheets=[(c, _class_sheet(audit, c)) for c in audit.manifest.classes],
        findings=[_with_pictures(f, audit.manifest.root) for f in track(audit.findings, "Contact sheets")],
    )
    write_text(Path(path), page)
    return Path(path)


def _with_pictures(finding: Issue, root: Path) -> dict[str, object]:
    """Return a finding with images of its first files, and the number of further files."""
    pictures = []
    for item in finding.items[:_FILES]:
        paths = [item["path"], item.get("other_path") or item.get("mask")]
        read = [_picture(root / p) for p in paths if p]
        names = " and ".join(n for n in (item["sample_id"], item.get("other_id")) if n)
        caption = f"{names} {item.get('detail', '')}".strip()
        pictures.append({"images": [_source(p) for p in read if p is not None], "caption": caption})
    more = max(len(finding.items) - _FILES, 0)
    return {"severity": finding.severity, "text": finding.text, "pictures": pictures, "more": more}


def _class_sheet(audit: DataAudit, name: str) -> list[tuple[str, str]]:
    rows = np.flatnonzero((audit.manifest.table["class"] == name).to_numpy() & ~audit.unreadable)
    if not len(rows):
        return []
    chosen = np.random.default_rng(0).permutation(rows)[:_MEAN_OF]
    table = audit.manifest.table.iloc[chosen]
    read = [(_picture(audit.manifest.root / p), str(s)) for p, s in zip(table["path"], table["sample_id"], strict=True)]
    images = [(picture, sample) for picture, sample in read if picture is not None]
    mean = np.mean([picture for picture, _ in images], axis=0).astype(np.uint8)
    shown = [(_source(picture), sample) for picture, sample in images[:_IMAGES]]
    return [(_source(mean), f"mean of {len(images)}"), *shown]


def _picture(path: Path) -> np.ndarray | None:
    """Read an image squeezed to SIDE x SIDE; None if it is unreadable."""
    try:
        return resize_image(read_image(path), SIDE)
    except UnreadableImage:
        return None


def _source(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
