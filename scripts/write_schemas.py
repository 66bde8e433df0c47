"""Write the JSON schemas of the documents on disk: `python -m scripts.write_schemas docs/schema`."""

import json
import sys
from pathlib import Path

from trustcxr.storage import layout
from trustcxr.storage import schemas as documents

DOCUMENTS: dict[str, type[documents.Document]] = {
    layout.METRICS_FILE: documents.RunDocument,
    layout.AUDIT_FILE: documents.AuditDocument,
    layout.STUDY_RESULTS: documents.StudyDocument,
    layout.TRAINING_FILE: documents.TrainingDocument,
    "leaderboard-entry.json": documents.LeaderboardEntry,
}


def schemas() -> dict[str, str]:
    """Return the text of each schema by its file name, such as `metrics.schema.json`."""
    texts = {}
    for name, kind in DOCUMENTS.items():
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
        text = json.dumps(kind.model_json_schema() | head, indent=1, ensure_ascii=False)
        texts[name.replace(".json", ".schema.json")] = text + "\n"
    return texts


if __name__ == "__main__":
    for file_name, text in schemas().items():
        (Path(sys.argv[1]) / file_name).write_text(text, encoding="utf-8")
