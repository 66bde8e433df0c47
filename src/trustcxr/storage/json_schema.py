"""The JSON schemas of what is written to disk; `python -m trustcxr.storage.json_schema docs/schema` writes them."""

import json
import sys
from pathlib import Path

from trustcxr.storage import layout
from trustcxr.storage import schemas as documents
from trustcxr.storage.schemas.document import Document

DOCUMENTS: dict[str, type[Document]] = {
    layout.METRICS_FILE: documents.RunDocument,
    layout.AUDIT_FILE: documents.AuditDocument,
    layout.STUDY_RESULTS: documents.StudyDocument,
    layout.TRAINING_FILE: documents.TrainingDocument,
}


def schemas() -> dict[str, str]:
    """The text of each schema by its file's name: `metrics.schema.json` and so on."""
    found = {}
    for name, kind in DOCUMENTS.items():
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
        content = kind.model_json_schema() | head
        found[name.replace(".json", ".schema.json")] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return found


def write(folder: Path) -> None:
    """Write every schema into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
