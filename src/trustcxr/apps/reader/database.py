"""Store a reader study in one SQLite file; every answer is written when it is given. Convert marks to masks."""

import errno
import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trustcxr.errors import UserError
from trustcxr.storage.atomic import atomic_write
from trustcxr.storage.os_errors import writing

FOLDER, FILE = "reader", "reader.sqlite"
RATINGS = (1, 2, 3, 4, 5)
Fraction = Annotated[float, Field(ge=0, le=1)]  # of the image's width or height


class Region(BaseModel):
    """A box (two opposite corners) or an outline (three points or more); points are (x, y), each 0 to 1."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    kind: Literal["box", "outline"]
    points: list[tuple[Fraction, Fraction]] = Field(min_length=2, max_length=600)

    @model_validator(mode="after")
    def _check_points(self) -> "Region":
        if self.kind == "box" and len(self.points) != 2:
            raise ValueError("a box has two corners")
        if self.kind == "outline" and len(self.points) < 3:
            raise ValueError("an outline has three points or more")
        return self


class Mark(BaseModel):
    """All regions of an image; an empty list means no finding."""

    model_config = ConfigDict(extra="forbid")
    regions: list[Region] = Field(max_length=20)


def draw_mask(mark: Mark, height: int, width: int) -> np.ndarray:
    """Return a mask (height, width), uint8, 1 for pixels whose centre is in a region.

    A region that contains no centre marks the pixels of its points.
    """
    mask = np.zeros((height, width), dtype=bool)
    for region in mark.regions:
        points = np.array(region.points) * (width, height)
        if region.kind == "box":
            (left, top), (right, bottom) = points
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        inside = _fill_polygon(points, height, width)
        if not inside.any():
            column, row = np.minimum(points.astype(int), (width - 1, height - 1)).T
            inside[row, column] = True
        mask |= inside
    return mask.astype(np.uint8)


def _fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return pixels (height, width) whose centre is in a polygon, by the even-odd rule."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:
            rows = np.flatnonzero((y1 <= y) != (y2 <= y))
            at = x1 + (y[rows] - y1) * (x2 - x1) / (y2 - y1)
            inside[rows] ^= x >= at[:, None]
    return inside


class StudyImage(NamedTuple):
    """PNGs of one image: the image, its mask (0 and 1), and the map of each arm over the image."""

    sample: str
    group: str
    picture: bytes
    mask: bytes
    maps: tuple[bytes, ...]


class Reader(NamedTuple):
    """A reader: number (from 1), name and access token."""

    number: int
    name: str
    token: str


class Judgement(NamedTuple):
    """Rank and rating of the map of one arm; None if missing."""

    rank: int | None = None
    rating: int | None = None


class Store:
    """The database. Each call opens a connection, so any thread may call."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path.parent}: no reader study here. Create one: trustcxr reader-study STUDY")
        self.path = path
        try:
            settings = dict(self._fetch("SELECT key, value FROM study"))
            self.arms: list[str] = json.loads(settings["arms"])
            self._key, self.seed = settings["key"], int(settings["seed"])  # the seed of the random images
            self.images = int(self._fetch_value("SELECT count(*) FROM images"))
        except (sqlite3.DatabaseError, LookupError, TypeError, ValueError) as problem:
            raise UserError(f"{path}: not the file of a reader study ({type(problem).__name__}); restore it") from None

    @classmethod
    def create(cls, path: Path, *, arms: Sequence[str], images: Sequence[StudyImage], seed: int = 0) -> "Store":
        """Write a new study atomically; only the owner can read the file, which contains the key.

        Raises UserError if the file exists.
        """
        about = {"version": "2", "arms": json.dumps(list(arms)), "created": _now()}
        about |= {"key": secrets.token_hex(16), "seed": str(seed)}
        if path.exists():
            raise UserError(f"{path}: exists already, with its answers. Move it away to begin another study.")
        with atomic_write(path) as temporary:
            temporary.unlink(missing_ok=True)
            temporary.touch(0o600, exist_ok=False)
            with _open(temporary) as base:
                base.executescript(Path(__file__).with_name("tables.sql").read_text(encoding="utf-8"))
                base.executemany("INSERT INTO study VALUES (?, ?)", about.items())
                for index, image in enumerate(images):
                    *columns, maps = image
                    base.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?)", (index, *columns))
                    drawn = [(index, arm, png) for arm, png in enumerate(maps)]
                    base.executemany("INSERT INTO maps VALUES (?, ?, ?)", drawn)
        return cls(path)

    def add_reader(self, name: str) -> Reader:
        """Return the reader of that name; create it if it is new."""
        with _open_to_write(self.path) as base:
            base.execute("INSERT OR IGNORE INTO readers (name, token) VALUES (?, ?)", (name, secrets.token_urlsafe(24)))
        return next(reader for reader in self.readers() if reader.name == name)

    def readers(self) -> list[Reader]:
        """Return all readers, oldest first."""
        return [Reader(*row) for row in self._fetch("SELECT number, name, token FROM readers ORDER BY number")]

    def find_reader(self, token: str) -> Reader | None:
        """Return the reader with that token, or None. Comparison takes constant time."""
        matches = [r for r in self.readers() if secrets.compare_digest(r.token.encode(), token.encode())]
        return matches[0] if matches else None

    def order(self, reader: Reader) -> list[int]:
        """Return the images in the random order of this reader."""
        return [int(image) for image in self._make_generator(reader, "images").permutation(self.images)]

    def slots(self, reader: Reader, image: int) -> list[int]:
        """Return the arm of each map that this reader sees of the image, in the order shown."""
        return [int(arm) for arm in self._make_generator(reader, f"image {image}").permutation(len(self.arms))]

    def _make_generator(self, reader: Reader, what: str) -> np.random.Generator:
        """Return a generator seeded by the study's secret key, the reader and the image."""
        seed = hashlib.sha256(f"{self._key}/{reader.number}/{what}".encode()).digest()
        return np.random.default_rng(int.from_bytes(seed, "big"))

    def picture(self, image: int) -> bytes:
        """Return the PNG of an image."""
        return bytes(self._fetch_value("SELECT picture FROM images WHERE number = ?", image))

    def map(self, image: int, arm: int) -> bytes:
        """Return the PNG of an arm's map over the image."""
        return bytes(self._fetch_value("SELECT picture FROM maps WHERE image = ? AND arm = ?", image, arm))

    def mark(self, reader: Reader, image: int) -> Mark | None:
        """Return the regions that the reader marked, or None."""
        rows = self._fetch("SELECT regions FROM marks WHERE reader = ? AND image = ?", reader.number, image)
        return Mark.model_validate_json(rows[0][0]) if rows else None

    def save_mark(self, reader: Reader, image: int, mark: Mark) -> bool:
        """Save a mark. Returns False if there is one: a reader who saw the maps cannot mark again."""
        row = (reader.number, image, mark.model_dump_json(), _now())
        with _open_to_write(self.path) as base:
            return base.execute("INSERT OR IGNORE INTO marks VALUES (?, ?, ?, ?)", row).rowcount == 1

    def judgements(self, reader: Reader, image: int) -> list[Judgement]:
        """Return rank and rating of each arm."""
        rows = self._fetch(
            "SELECT arm, ranked, rating FROM judgements WHERE reader = ? AND image = ?", reader.number, image
        )
        by_arm = {arm: Judgement(ranked, rating) for arm, ranked, rating in rows}
        return [by_arm.get(arm, Judgement()) for arm in range(len(self.arms))]

    def save_judgement(self, reader: Reader, image: int, arm: int, judgement: Judgement) -> None:
        """Save a rank, a rating or both; None changes nothing."""
        row = (reader.number, image, arm, judgement.rank, judgement.rating, _now())
        with _open_to_write(self.path) as base:
            base.execute(
                "INSERT INTO judgements VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "ranked = coalesce(excluded.ranked, ranked), rating = coalesce(excluded.rating, rating), "
                "saved = excluded.saved",
                row,
            )

    def done(self, reader: Reader) -> list[int]:
        """Return the images that this reader has finished."""
        rows = self._fetch(
            "SELECT image FROM judgements WHERE reader = ? AND ranked IS NOT NULL AND rating IS NOT NULL "
            "GROUP BY image HAVING count(*) = ?",
            reader.number,
            len(self.arms),
        )
        return [image for (image,) in rows]

    def samples(self) -> list[tuple[str, str, bytes]]:
        """Return (sample, group, mask as PNG) of each image."""
        return self._fetch("SELECT sample, grouped, mask FROM images ORDER BY number")

    def _fetch_value(self, query: str, *values: object) -> Any:
        return self._fetch(query, *values)[0][0]

    def _fetch(self, query: str, *values: object) -> list[Any]:
        with _open(self.path) as base:
            return base.execute(query, values).fetchall()


_DISK_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a connection: commit to disk after the block, or roll back after an exception."""
    base = sqlite3.connect(path, timeout=30)
    try:
        base.execute("PRAGMA foreign_keys = ON")
        base.execute("PRAGMA synchronous = FULL")
        with base:
            yield base
    finally:
        base.close()


@contextmanager
def _open_to_write(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a connection to write. Raises CannotWrite, with earlier answers intact, on a disk error."""
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
