"""Create a reader study, serve it to its readers until Ctrl-C, and write its results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trustcxr.apps.reader import prepare
from trustcxr.apps.reader.database import FILE, FOLDER, Store
from trustcxr.console import log, plural
from trustcxr.errors import UserError
from trustcxr.report import load
from trustcxr.storage import layout, locks
from trustcxr.storage.os_errors import shell_quote


@dataclass(frozen=True)
class ReaderOptions:
    """Options of a new reader study: see `trustcxr reader-study --help`."""

    arms: Sequence[str] = ()
    data: Path | None = None
    images: int | None = None
    seed: int | None = None


_DEFAULT_IMAGES, _DEFAULT_SEED = 30, 0


def database_path(study: Path) -> Path:
    """Return the database of the reader study of a study or a run. Raises UserError if there is neither."""
    checked = layout.check_run(study) if (study / layout.RUN_FILE).is_file() else layout.check_study(study)
    return checked / FOLDER / FILE


def open_or_create(study: Path, options: ReaderOptions) -> Store:
    """Open the reader study, or create it. Raises UserError if it exists with other options."""
    path = database_path(study)
    if path.exists():
        return _open_existing(study, path, options)
    chosen = prepare.parse_arms(study, options.arms)
    with locks.folder_lock(path.parent):
        if path.exists():  # another process has just created it
            return _open_existing(study, path, options)
        seed = _DEFAULT_SEED if options.seed is None else options.seed
        count = options.images or _DEFAULT_IMAGES
        images = prepare.draw_images(chosen, data=options.data, count=count, seed=seed, study=study)
        store = Store.create(path, arms=[arm.name for arm in chosen], images=images, seed=seed)
    log(f"a new reader study: {plural(store.images, 'image')}, {plural(len(store.arms), 'map')} of each, in {path}")
    return store


def _open_existing(study: Path, path: Path, options: ReaderOptions) -> Store:
    store = Store(path)
    if options.arms and [arm.name for arm in prepare.parse_arms(study, options.arms)] != store.arms:
        raise UserError(
            f"{path}: shows {', '.join(store.arms)}; move that folder away to begin another, or leave --arm out"
        )
    if options.images not in (None, store.images):
        raise UserError(f"{path}: shows {plural(store.images, 'image')}; move that folder away to begin another")
    if options.seed is not None and store.seed != options.seed:
        raise UserError(f"{path}: its images were drawn by seed {store.seed}; move that folder away to begin another")
    if options.data is not None:
        log(f"{path}: this reader study has its images and maps already: --data is ignored")
    return store


def serve(study: Path, options: ReaderOptions, names: Sequence[str], *, host: str, port: int) -> None:
    """Print the link of each reader, and serve until Ctrl-C. Raises UserError for wrong options or address."""
    from trustcxr.apps.serve import server

    server.check_installed()
    valid_names, path = [_clean_name(name) for name in names], database_path(study)
    if not valid_names and not (path.exists() and Store(path).readers()):
        command = f"trustcxr reader-study {shell_quote(study)} --reader NAME"
        raise UserError(f"{study}: there are no readers yet. Name them: {command}, once for each.")
    store = open_or_create(study, options)
    for name in valid_names:
        store.add_reader(name)
    from trustcxr.apps.reader import reader_page
    from trustcxr.apps.serve import middleware

    local = middleware.is_loopback(host)
    with server.open_listener(host, port) as listener:
        app = reader_page.build(store, hosts=middleware.local_names(host) if local else None)
        for reader in store.readers():
            address = server.Address(host, listener.getsockname()[1], reader.token)
            log(f"{reader.name}: {address.link}")
        log("each link is for one reader; Ctrl-C ends, and saved answers stay")
        server.run(app, listener)


def write_results(study: Path, out: Path | None = None) -> list[Path]:
    """Write the result tables into `out`, or the reader study's folder, and return their paths."""
    from trustcxr.apps.reader import reader_results

    path = database_path(study)
    return reader_results.write_tables(
        reader_results.gather(Store(path)), load.load_report(study).runs, out or path.parent
    )


def _clean_name(name: str) -> str:
    text = " ".join(name.split())
    if not text or len(text) > 60 or not text.isprintable():
        raise UserError(f"--reader {name!r}: a name, or a pseudonym, of 1 to 60 printable characters")
    return text
