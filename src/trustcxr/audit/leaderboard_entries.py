"""Write entries of a leaderboard from audits, and check a folder of entries."""

from pathlib import Path

from trustcxr.errors import UserError
from trustcxr.recipes.exams import list_exams
from trustcxr.storage import atomic, layout
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.prediction_table import read_image_results
from trustcxr.storage.schemas import AuditDocument, LeaderboardEntry, read_audit, read_schema
from trustcxr.storage.schemas.audit_document import AUDIT_PARTS, FACTS, make_badge


def add_entry(
    audit: Path,
    board: Path,
    *,
    licence: str,
    source: str,
    run_by: str,
    model_file: Path | None = None,
    reported: bool = False,
) -> Path:
    """Write the entry of an audit's folder below `board`; return its path. Raises UserError if it would be faulty.

    An entry is never replaced: another model, protocol or result under its name is refused. An entry without results
    of single images gets those of the same audit.
    """
    document = read_audit(audit / layout.AUDIT_FILE)
    if document.protocol is None:
        raise UserError(f"{audit}: audited with other options than a protocol's. Audit the model without them.")
    plain = document.plain()  # without figures of single images, patients and folders of this machine
    parts = {key: plain[key] for key in AUDIT_PARTS if key in plain}
    parts["facts"] = {key: value for key, value in plain.get("facts", {}).items() if key in FACTS}
    parts["model"] = {key: _hide_folder(key, value) for key, value in plain["model"].items()}
    entry = LeaderboardEntry(
        version=document.version,
        badge=make_badge(document.model.kind, reported=reported),
        run_by=run_by,
        licence=licence,
        source=source,
        command=_describe_command(document, model_file),
        audit=AuditDocument.model_validate(parts),
    )
    if (results := read_image_results(audit, document)) is not None:
        entry.image_results = results
    if model_file is not None:
        entry.model_file = {key: _hide_folder(key, value) for key, value in atomic.read_yaml(model_file).items()}
    path = board / entry.file_name
    if faults := _list_faults(entry):
        raise UserError(f"{audit}: not an entry of a leaderboard: {faults[0]}")
    if path.exists():
        before, after = read_schema(LeaderboardEntry, path).plain(), entry.plain()
        if before == after:
            return path
        after.pop("image_results", None)
        if before != after:
            raise UserError(f"{path}: another entry of these bytes is there. Remove it first, if this one replaces it.")
    atomic.write_json(path, entry)
    return path


def _hide_folder(key: str, value: object) -> object:
    hidden = key in ("path", "source", "predictions", "criteria") and isinstance(value, str)
    return Path(str(value)).name if hidden else value


def _describe_command(document: AuditDocument, model_file: Path | None) -> str:
    model = "model.yaml" if model_file is None else model_file.name
    model = Path(document.model.path or "").name if model_file is None and document.model.kind == "run" else model
    split = f" --split {shell_quote(document.split)}" if document.split else ""
    data = shell_quote(document.data.name)
    return f"trustcxr audit {model} --data {data}{split} --protocol {document.protocol} --out DIR"


def check_entries(board: Path, models: Path | None = None) -> tuple[int, int, list[str]]:
    """Return the number of entries, of models found in `models`, and a line for each fault.

    Each model is searched by its file name, a run's weights by the run's folder.
    """
    if not board.is_dir():
        raise UserError(f"{board}: no such folder. Give the folder of the leaderboard's entries.")
    paths = sorted(path for path in board.rglob("*.json") if path.name != layout.AUDIT_FILE)
    if not paths:
        raise UserError(f"{board}: no entry (*.json) in it. `trustcxr leaderboard {board} --add AUDIT` writes one.")
    if models is not None and not models.is_dir():
        raise UserError(f"{models}: no such folder. Give the folder of the models' files.")
    faults: list[str] = []
    entries: dict[Path, LeaderboardEntry] = {}
    for path in paths:
        try:
            entries[path] = read_schema(LeaderboardEntry, path)
        except UserError as problem:
            faults.append(str(problem))
            continue
        if f"{path.parent.resolve().name}/{path.name}" != (expected := entries[path].file_name):
            faults.append(f"{path}: file name: it does not fit data, name and sha256. Rename it to {expected}.")
        faults += [f"{path}: {fault}" for fault in _list_faults(entries[path])]
    first: dict[tuple[object, ...], Path] = {}
    for path, entry in entries.items():
        data = entry.audit.data
        key = entry.audit.model.sha256, entry.audit.protocol, data.files or data.fingerprint
        if (earlier := first.setdefault(key, path)) != path:
            faults.append(f"{path}: duplicate: the same model, images and protocol as {earlier}. Remove one of them.")
    # An audit names a run's weights by their folder, other models by their file.
    paths_of_models = [path for path in sorted(models.rglob("*")) if path.is_file()] if models is not None else []
    files = [(p.resolve().parent.name if p.name == layout.WEIGHTS_FILE else p.name, p) for p in paths_of_models]
    matched = 0
    for path, entry in entries.items():
        matches, changed = _compare_model(entry, files)
        matched += matches
        faults += [f"{path}: {line}" for line in changed]
    return len(paths), matched, faults


def _list_faults(entry: LeaderboardEntry) -> list[str]:
    name, protocols = entry.audit.protocol, list_exams()
    unknown = f"audit.protocol: {name!r} is unknown. Audit the model by one of {', '.join(protocols)}."
    return [*([] if name in protocols else [unknown]), *entry.list_faults()]


def _compare_model(entry: LeaderboardEntry, files: list[tuple[str, Path]]) -> tuple[bool, list[str]]:
    """Return whether a file is the entry's model, and a line if only changed files have its name."""
    model = entry.audit.model
    paths = [path for name, path in files if name == model.path]
    try:
        hashes = [_hash_model(path, model.bytes or 0) for path in paths]
    except UserError as problem:
        return False, [f"model: {problem}"]
    if not paths or model.sha256 in hashes:
        return bool(paths), []
    return False, [
        f"model: {paths[0]} has changed: sha256 {hashes[0]}, the entry's {model.sha256}. "
        "Restore the file, or add the audit of the new one."
    ]


def _hash_model(path: Path, size: int) -> str:
    """Return the SHA-256 of a model's file, for ONNX with its external data, as an audit has it."""
    if path.suffix != ".onnx" or path.stat().st_size >= size:
        return atomic.checksum(path)
    from trustcxr.audit.formats.loading import hash_onnx
    from trustcxr.audit.formats.onnx import read_onnx

    read_onnx(path)
    return hash_onnx(path)[0]
