"""From a command to a reader study: made once, then open to its readers until Ctrl-C."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trustcxr.console import say
from trustcxr.errors import UserError
from trustcxr.reader import preparing
from trustcxr.reader.store import FILE, FOLDER, Store
from trustcxr.report import study_folder
from trustcxr.results import folders, locks
from trustcxr.results.disk import as_typed


@dataclass(frozen=True)
class Asked:
    """What a new reader study shows: see `trustcxr reader --help`."""

    arms: Sequence[str] = ()
    data: Path | None = None
    films: int | None = None
    seed: int | None = None


_FILMS, _SEED = 30, 0


def place(study: Path) -> Path:
    """The file of a study's readers; UserError where there is no study."""
    return folders.check_study(study) / FOLDER / FILE


def open_or_make(study: Path, asked: Asked) -> Store:
    """The reader study as it is, or a new one. UserError where it is there and shows other maps than asked for."""
    path = place(study)
    if path.exists():
        return _opened(study, path, asked)
    chosen = preparing.arms(study, asked.arms)
    with locks.holding(path.parent):
        if path.exists():  # another process has made it since
            return _opened(study, path, asked)
        seed = _SEED if asked.seed is None else asked.seed
        films = preparing.films(chosen, data=asked.data, count=asked.films or _FILMS, seed=seed)
        store = Store.create(path, arms=[arm.name for arm in chosen], films=films, seed=seed)
    say(f"a new reader study: {store.films} films, {len(store.arms)} maps of each, in {path}")
    return store


def _opened(study: Path, path: Path, asked: Asked) -> Store:
    store = Store(path)
    if asked.arms and [arm.name for arm in preparing.arms(study, asked.arms)] != store.arms:
        raise UserError(
            f"{path}: shows {', '.join(store.arms)}; move that folder away to begin another, or leave --arm out"
        )
    if asked.films not in (None, store.films):
        raise UserError(f"{path}: shows {store.films} films; move that folder away to begin another")
    if asked.seed is not None and store.seed != asked.seed:
        raise UserError(f"{path}: its films were drawn by seed {store.seed}; move that folder away to begin another")
    if asked.data is not None:
        say(f"{path}: shows the films and maps that it was made with: --data is not looked at")
    return store


def serve(study: Path, asked: Asked, names: Sequence[str], *, host: str, port: int) -> None:
    """Say each reader's link, and answer until Ctrl-C. UserError for what cannot be shown, or where to listen."""
    from trustcxr.serve import server

    server.check_installed()
    proper, path = [_proper(name) for name in names], place(study)
    if not proper and not (path.exists() and Store(path).readers()):
        command = f"trustcxr reader {as_typed(study)} --reader NAME"
        raise UserError(f"{study}: nobody reads yet: say who: {command}, once for each")
    store = open_or_make(study, asked)
    for name in proper:
        store.add(name)
    from trustcxr.reader import app
    from trustcxr.serve import doors

    local = doors.is_loopback(host)
    with server.listening(host, port) as listener:
        house = app.build(store, hosts=doors.local_names(host) if local else None)
        for reader in store.readers():
            address = server.Address(host, listener.getsockname()[1], reader.token)
            say(f"{reader.name}: {address.link}")
        say("each link is its reader's own; Ctrl-C ends, and what was saved is kept")
        server.run(house, listener)


def results(study: Path, out: Path | None = None) -> list[Path]:
    """Write the tables of what the readers found into the reader study's folder, or `out`; their paths."""
    from trustcxr.reader import results as tables

    path = place(study)
    return tables.write(tables.gather(Store(path)), study_folder.read(study).runs, out or path.parent)


def _proper(name: str) -> str:
    text = " ".join(name.split())
    if not text or len(text) > 60 or not text.isprintable():
        raise UserError(f"--reader {name!r}: a name, or a pseudonym, of 1 to 60 printable characters")
    return text
