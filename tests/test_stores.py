"""`data check` reads every store of decoded images whole: a damaged one is a finding, and is decoded again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from trustcxr import cli
from trustcxr.data import load_dataset, stores
from trustcxr.data.auditing.audit import audit
from trustcxr.data.layouts import read_manifest
from trustcxr.data.phantom import writing


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Synthetic films, decoded at two sizes; and others, whose store is none of their business."""
    monkeypatch.setenv("TRUSTCXR_CACHE", str(tmp_path / "cache"))
    others = writing.write(tmp_path / "others", {"Train": 1, "Val": 1, "Test": 1}, size=32, seed=1)
    films = writing.write(tmp_path / "films", {"Train": 2, "Val": 1, "Test": 1}, size=32)
    for root, size in ((others, 16), (films, 16), (films, 24)):
        load_dataset(root, "Train", size, workers=1)
    return films


def damage(films: Path, name: str, size: int = 16) -> None:
    """Flip a bit, and leave the file's time as it was."""
    file = load_dataset(films, "Train", size, workers=1)._store.folder / name
    content, facts = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_whole_stores_are_said_to_be(films: Path) -> None:
    found = audit(films, probes=False, workers=1)
    assert [(s["size"], s["resize"], s["fault"]) for s in sorted(found.stores, key=lambda s: s["size"])] == [
        (16, "squeeze", None),
        (24, "squeeze", None),
    ]
    assert "store" not in {f.kind for f in found.findings}
    assert str(films.parent) not in json.dumps(found.to_dict()), "no path of this machine"
    assert "every byte as it was written" in found.text()


@pytest.mark.parametrize("name", ["images.u8", "index.json"])
def test_a_damaged_store_is_a_finding_and_is_decoded_again(
    name: str, films: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.array(load_dataset(films, "Train", 16, workers=1).images)
    damage(films, name)
    monkeypatch.setattr("sys.argv", ["trustcxr", "data", "check", str(films), "--no-probes"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert not ended.value.code
    assert "1 store of decoded images was damaged" in said
    assert f"16 pixels (squeeze): {name} is not what was written; decoded again" in said
    assert [s["fault"] for s in stores.check(read_manifest(films))] == [None, None]
    assert np.array_equal(load_dataset(films, "Train", 16, workers=1, every=True).images, pixels)


def test_a_store_that_cannot_be_decoded_again_is_a_finding_all_the_same(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trustcxr.errors import CannotWrite

    damage(films, "images.u8")

    def refused(*_: object, **__: object) -> None:
        raise CannotWrite("no space left")

    monkeypatch.setattr(stores.store, "open_store", refused)
    (finding,) = (f for f in audit(films, probes=False, workers=1).findings if f.kind == "store")
    assert "not decoded again: no space left" in finding.items[0]["detail"]
