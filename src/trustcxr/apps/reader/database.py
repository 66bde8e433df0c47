"""The reader study on disk: one SQLite file, written as readers go, so that a cut loses nothing that was saved."""

import errno
import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from trustcxr.apps.reader.annotations import Mark
from trustcxr.errors import UserError
from trustcxr.storage.atomic import atomic_write
from trustcxr.storage.os_errors import writing

FOLDER, FILE = "reader", "reader.sqlite"
RATINGS = (1, 2, 3, 4, 5)
_VERSION = 1
_TABLES = """
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (place INTEGER PRIMARY KEY, sample TEXT NOT NULL UNIQUE, grouped TEXT NOT NULL,
                    picture BLOB NOT NULL, mask BLOB NOT NULL);
CREATE TABLE maps (image INTEGER NOT NULL REFERENCES images, arm INTEGER NOT NULL, picture BLOB NOT NULL,
                   PRIMARY KEY (image, arm));
CREATE TABLE readers (place INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL UNIQUE);
CREATE TABLE marks (reader INTEGER NOT NULL REFERENCES readers, image INTEGER NOT NULL REFERENCES images,
                    regions TEXT NOT NULL, saved TEXT NOT NULL, PRIMARY KEY (reader, image));
CREATE TABLE judgements (reader INTEGER NOT NULL REFERENCES readers, image INTEGER NOT NULL REFERENCES images,
                         arm INTEGER NOT NULL, ranked INTEGER, rating INTEGER, saved TEXT NOT NULL,
                         PRIMARY KEY (reader, image, arm));
"""


@dataclass(frozen=True)
class StudyImage:
    """What is shown of one image: PNGs of the image, of each arm's map over it; and its mask, uint8 0 and 1, as PNG."""

    sample: str
    group: str
    picture: bytes
    mask: bytes
    maps: tuple[bytes, ...]


@dataclass(frozen=True)
class Reader:
    """One who reads."""

    place: int
    name: str
    token: str


@dataclass(frozen=True)
class Judgement:
    """What a reader said of the map of one arm; None where not yet."""

    rank: int | None = None
    rating: int | None = None


class Store:
    """The file. A connection is opened for each use: readers are few, and any thread may ask."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path.parent}: no reader study here yet: `trustcxr reader-study STUDY` makes one")
        self.path = path
        try:
            self.arms: list[str] = json.loads(self._about("arms"))
            self._key = self._about("key")
            self.seed = int(self._about("seed"))  # by which the images were drawn
            self.images = int(self._one("SELECT count(*) FROM images"))
        except (sqlite3.DatabaseError, LookupError, TypeError, ValueError) as problem:
            raise UserError(f"{path}: not the file of a reader study ({type(problem).__name__}); restore it") from None

    @classmethod
    def create(cls, path: Path, *, arms: Sequence[str], images: Sequence[StudyImage], seed: int = 0) -> "Store":
        """Write a new study whole or not at all; only its owner may read the file, which holds the key.

        UserError where there is one: it may have answers.
        """
        about = {"version": str(_VERSION), "arms": json.dumps(list(arms)), "created": _now()}
        about |= {"key": secrets.token_hex(16), "seed": str(seed)}
        if path.exists():
            raise UserError(f"{path}: is there already, with its answers. Move it away to begin another study.")
        with atomic_write(path) as temporary:
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o600))
            with _open(temporary) as base:
                base.executescript(_TABLES)
                base.executemany("INSERT INTO study VALUES (?, ?)", about.items())
                for index, image in enumerate(images):
                    row = (index, image.sample, image.group, image.picture, image.mask)
                    base.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?)", row)
                    drawn = [(index, arm, png) for arm, png in enumerate(image.maps)]
                    base.executemany("INSERT INTO maps VALUES (?, ?, ?)", drawn)
        return cls(path)

    # --- readers -----------------------------------------------------------------------------------------------------

    def add(self, name: str) -> Reader:
        """A reader of that name, new or as before."""
        with _changed(self.path) as base:
            base.execute("INSERT OR IGNORE INTO readers (name, token) VALUES (?, ?)", (name, secrets.token_urlsafe(24)))
        return next(reader for reader in self.readers() if reader.name == name)

    def readers(self) -> list[Reader]:
        """All of them, in the order in which they came."""
        return [Reader(*row) for row in self._all("SELECT place, name, token FROM readers ORDER BY place")]

    def known(self, token: str) -> Reader | None:
        """Whose token it is; compared in constant time."""
        encoded = token.encode()
        readers = [reader for reader in self.readers() if secrets.compare_digest(reader.token.encode(), encoded)]
        return readers[0] if readers else None

    # --- the blinding ------------------------------------------------------------------------------------------------

    def order(self, reader: Reader) -> list[int]:
        """The images in this reader's order."""
        return [int(image) for image in self._draws(reader, "images").permutation(self.images)]

    def slots(self, reader: Reader, image: int) -> list[int]:
        """Which arm stands in each place for this reader and image."""
        return [int(arm) for arm in self._draws(reader, f"image {image}").permutation(len(self.arms))]

    def _draws(self, reader: Reader, what: str) -> np.random.Generator:
        """Random numbers that hang on the study's secret, the reader and the image alone."""
        seed = hashlib.sha256(f"{self._key}/{reader.place}/{what}".encode()).digest()
        return np.random.default_rng(int.from_bytes(seed, "big"))

    # --- what is shown and said --------------------------------------------------------------------------------------

    def picture(self, image: int) -> bytes:
        """The image's PNG."""
        return bytes(self._one("SELECT picture FROM images WHERE place = ?", image))

    def map(self, image: int, arm: int) -> bytes:
        """The PNG of an arm's map over the image."""
        return bytes(self._one("SELECT picture FROM maps WHERE image = ? AND arm = ?", image, arm))

    def mark(self, reader: Reader, image: int) -> Mark | None:
        """What the reader marked; None where not yet."""
        rows = self._all("SELECT regions FROM marks WHERE reader = ? AND image = ?", reader.place, image)
        return Mark.model_validate_json(rows[0][0]) if rows else None

    def save_mark(self, reader: Reader, image: int, mark: Mark) -> bool:
        """Keep a mark; False where there is one already: who has seen the maps does not mark anew."""
        row = (reader.place, image, mark.model_dump_json(), _now())
        with _changed(self.path) as base:
            return base.execute("INSERT OR IGNORE INTO marks VALUES (?, ?, ?, ?)", row).rowcount == 1

    def judgements(self, reader: Reader, image: int) -> list[Judgement]:
        """What the reader said of each arm."""
        rows = self._all(
            "SELECT arm, ranked, rating FROM judgements WHERE reader = ? AND image = ?", reader.place, image
        )
        by_arm = {arm: Judgement(ranked, rating) for arm, ranked, rating in rows}
        return [by_arm.get(arm, Judgement()) for arm in range(len(self.arms))]

    def save_judgement(self, reader: Reader, image: int, arm: int, judgement: Judgement) -> None:
        """Keep a rank, a rating or both; what is None stays as it was."""
        row = (reader.place, image, arm, judgement.rank, judgement.rating, _now())
        with _changed(self.path) as base:
            base.execute(
                "INSERT INTO judgements VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "ranked = coalesce(excluded.ranked, ranked), rating = coalesce(excluded.rating, rating), "
                "saved = excluded.saved",
                row,
            )

    def done(self, reader: Reader) -> list[int]:
        """Images that this reader has marked, ranked and rated whole."""
        rows = self._all(
            "SELECT image FROM judgements WHERE reader = ? AND ranked IS NOT NULL AND rating IS NOT NULL "
            "GROUP BY image HAVING count(*) = ?",
            reader.place,
            len(self.arms),
        )
        return [image for (image,) in rows]

    # --- all of it, for the results ----------------------------------------------------------------------------------

    def samples(self) -> list[tuple[str, str, bytes]]:
        """(sample, group, mask as PNG) of each image."""
        return self._all("SELECT sample, grouped, mask FROM images ORDER BY place")

    def _about(self, key: str) -> str:
        return str(self._one("SELECT value FROM study WHERE key = ?", key))

    def _one(self, question: str, *values: object) -> Any:
        rows = self._all(question, *values)
        if not rows:
            raise LookupError(question)
        return rows[0][0]

    def _all(self, question: str, *values: object) -> list[Any]:
        with _open(self.path) as base:
            return base.execute(question, values).fetchall()


_DISK_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are on the disk when the block ends well, and gone where it does not."""
    base = sqlite3.connect(path, timeout=30)
    try:
        base.execute("PRAGMA foreign_keys = ON")
        base.execute("PRAGMA synchronous = FULL")
        with base:
            yield base
    finally:
        base.close()


@contextmanager
def _changed(path: Path) -> Iterator[sqlite3.Connection]:
    """`_open` to write: CannotWrite, with what was said before still whole, where the disk refuses."""
    with writing(path):
        try:
            with _open(path) as base:
                yield base
        except sqlite3.OperationalError as problem:
            if (number := _DISK_ERRORS.get(problem.sqlite_errorcode & 0xFF)) is None:
                raise
            raise OSError(number, str(problem)) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
