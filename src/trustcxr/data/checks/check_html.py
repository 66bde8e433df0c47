"""Write a data check as one self-contained HTML page: verdict, classes, and images of each finding."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trustcxr.console import format_duration, track
from trustcxr.data.checks.check import DataAudit
from trustcxr.data.checks.confounds import VIEWS, WITHOUT_LUNGS
from trustcxr.data.checks.issues import Issue
from trustcxr.data.images.greyscale import UnreadableImage
from trustcxr.data.images.read import read_image, resize_image
from trustcxr.storage.atomic import write_text
from trustcxr.version import NOTICE

SIDE = 128  # pixels of an image's side
_SHOWN, _IMAGES, _MEAN_OF = 24, 6, 200


def write_page(audit: DataAudit, path: str | Path) -> Path:
    """Write the page to `path` and return it; reads the images shown again. Raises UserError if it cannot write."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("trustcxr.data.checks", "templates"), autoescape=True)
    manifest = audit.manifest
    page = environment.get_template("audit.html.j2").render(
        audit=audit,
        manifest=manifest,
        notice=NOTICE,
        seconds=format_duration(audit.seconds),
        views=VIEWS,
        without=WITHOUT_LUNGS,
        mean_of=_MEAN_OF,
        side=SIDE,
        good=not any(audit.issues_of(s) for s in ("fault", "leak", "warning")),
        counts=Markup(audit.count_table().to_html(border=0)),
        lines=audit.content_lines(),
        sheets=[(c, _class_sheet(audit, c)) for c in manifest.classes],
        findings=[
            _with_pictures(f, manifest.root) for f in track(audit.findings, "Contact sheets", len(audit.findings))
        ],
    )
    write_text(Path(path), page)
    return Path(path)


def _with_pictures(finding: Issue, root: Path) -> dict[str, Any]:
    """Return a finding with images of its first files, and the number of further files."""
    pictures = []
    for item in finding.items[:_SHOWN]:
        paths = [item["path"], item.get("other_path") or item.get("mask")]
        read = [_picture(root / p) for p in paths if p]
        names = " and ".join(n for n in (item["sample_id"], item.get("other_id")) if n)
        caption = f"{names} {item.get('detail', '')}".strip()
        pictures.append({"images": [_source(p) for p in read if p is not None], "caption": caption})
    more = max(len(finding.items) - _SHOWN, 0)
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
