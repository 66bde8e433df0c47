"""Name the protocols of audits, one YAML file each."""

from pathlib import Path

EXAMS = Path(__file__).parent
NEWEST = "exam-1"


def list_exams() -> list[str]:
    """Return the names of all protocols."""
    return sorted(path.stem for path in EXAMS.glob("*.yaml"))
