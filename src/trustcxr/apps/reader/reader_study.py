"""From a command to a reader study: made once, then open to its readers until Ctrl-C."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trustcxr.apps.reader import prepare
from trustcxr.apps.reader.database import FILE, FOLDER, Store
from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.report import load
from trustcxr.storage import layout, locks
from trustcxr.storage.os_errors import shell_quote


@dataclass(frozen=True)
class ReaderOptions:
    """What a new reader study shows: see `trustcxr reader-study --help`."""

    arms: Sequence[str] = ()
    data: Path | None = None
    images: int | None = None
    seed: int | None = None


_IMAGES, _SEED = 30, 0


def place(study: Path) -> Path:
    """The file of a study's readers; UserError where there is no study."""
    return layout.check_study(study) / FOLDER / FILE


def open_or_make(study: Path, options: ReaderOptions) -> Store:
    """The reader study as it is, or a new one. UserError where it is there and shows other maps than asked for."""
    path = place(study)
    if path.exists():
        return _opened(study, path, options)
    chosen = prepare.arms(study, options.arms)
    with locks.folder_lock(path.parent):
        if path.exists():  # another process has made it since
            return _opened(study, path, options)
        seed = _SEED if options.seed is None else options.seed
        images = prepare.draw_images(chosen, data=options.data, count=options.images or _IMAGES, seed=seed)
        store = Store.create(path, arms=[arm.name for arm in chosen], images=images, seed=seed)
    log(f"a new reader study: {store.images} images, {len(store.arms)} maps of each, in {path}")
    return store


def _opened(study: Path, path: Path, options: ReaderOptions) -> Store:
    store = Store(path)
    if options.arms and [arm.name for arm in prepare.arms(study, options.arms)] != store.arms:
        raise UserError(
            f"{path}: shows {', '.join(store.arms)}; move that folder away to begin another, or leave --arm out"
        )
    if options.images not in (None, store.images):
        raise UserError(f"{path}: shows {store.images} images; move that folder away to begin another")
    if options.seed is not None and store.seed != options.seed:
        raise UserError(f"{path}: its images were drawn by seed {store.seed}; move that folder away to begin another")
    if options.data is not None:
        log(f"{path}: shows the images and maps that it was made with: --data is not looked at")
    return store


def serve(study: Path, options: ReaderOptions, names: Sequence[str], *, host: str, port: int) -> None:
    """Say each reader's link, and answer until Ctrl-C. UserError for what cannot be shown, or where to listen."""
    from trustcxr.apps.serve import server

    server.check_installed()
    proper, path = [_proper(name) for name in names], place(study)
    if not proper and not (path.exists() and Store(path).readers()):
        command = f"trustcxr reader-study {shell_quote(study)} --reader NAME"
        raise UserError(f"{study}: nobody reads yet: say who: {command}, once for each")
    store = open_or_make(study, options)
    for name in proper:
        store.add(name)
    from trustcxr.apps.reader import reader_page
    from trustcxr.apps.serve import middleware

    local = middleware.is_loopback(host)
    with server.listening(host, port) as listener:
        house = reader_page.build(store, hosts=middleware.local_names(host) if local else None)
        for reader in store.readers():
            address = server.Address(host, listener.getsockname()[1], reader.token)
            log(f"{reader.name}: {address.link}")
        log("each link is its reader's own; Ctrl-C ends, and what was saved is kept")
        server.run(house, listener)


def write_results(study: Path, out: Path | None = None) -> list[Path]:
    """Write the tables of what the readers found into the reader study's folder, or `out`; their paths."""
    from trustcxr.apps.reader import reader_results as tables

    path = place(study)
    return tables.write(tables.gather(Store(path)), load.load_report(study).runs, out or path.parent)


def _proper(name: str) -> str:
    text = " ".join(name.split())
    if not text or len(text) > 60 or not text.isprintable():
        raise UserError(f"--reader {name!r}: a name, or a pseudonym, of 1 to 60 printable characters")
    return text
