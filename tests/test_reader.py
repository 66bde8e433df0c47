"""The reader study: blinded, saved as it goes, by reader; and what it says of readers and models."""

import io
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from matplotlib.path import Path as Path2D
from PIL import Image

import browser as browsers
import small_runs
from study_fixture import CLASSES, make_study
from test_cli import complaint
from trustcxr.apps.reader import database, reader_results, reader_study
from trustcxr.apps.reader.database import Judgement, Mark, Reader, Store, StudyImage, draw_mask
from trustcxr.apps.reader.reader_study import Arm, draw_images, parse_arms
from trustcxr.data import load_dataset
from trustcxr.data.dataset import Dataset
from trustcxr.data.images import read as squares
from trustcxr.data.images.read import read_image
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import examples, heatmap_io
from trustcxr.report import load
from trustcxr.storage import atomic
from trustcxr.storage.locks import LOCK_FILE
from trustcxr.storage.schemas import RunDocument

ARMS = ("resnet18-standard-s0", "resnet18-fgsm-s0", "tf_efficientnet_lite0-fgsm-s0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four runs that has saved the maps of five images, whose files have 144 x 120 pixels."""
    study = make_study(tmp_path_factory.mktemp("study"), panels=5, images=15, resamples=5, epochs=2)
    panels, data, rows = load.load_report(study).runs[0].panels, tmp_path_factory.mktemp("data"), []
    for name, pixels in zip(panels["sample_id"], panels["image"], strict=True):
        path = data / f"{len(rows)}.png"
        Image.fromarray(pixels).resize((120, 144), Image.Resampling.BICUBIC).save(path)
        rows.append({"sample_id": name, "path": path.name, "class": CLASSES[0], "split": "Test"})
    pd.DataFrame(rows).to_csv(data / "list.csv", index=False)
    atomic.write_yaml(study / "data.yaml", {"path": str(data / "list.csv")})
    return study


@pytest.fixture(scope="module")
def shown(finished: Path) -> list[StudyImage]:
    """Four images with the maps of three arms."""
    return draw_images(parse_arms(finished, ARMS), data=None, count=4, seed=1, study=finished)


@pytest.fixture
def store(shown: list[StudyImage], tmp_path: Path) -> Store:
    """A new reader study of three arms and four images, with two readers."""
    arms = [f"{name}:gradcam" for name in ARMS]
    made = Store.create(tmp_path / "reader.sqlite", arms=arms, images=shown)
    for name in ("R1", "R2"):
        made.add_reader(name)
    return made


def region(kind: str, points: object) -> Mark:
    return Mark.model_validate({"regions": [{"kind": kind, "points": points}]})


def box(left: float, top: float, right: float, bottom: float) -> Mark:
    return region("box", [[left, top], [right, bottom]])


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def client(store: Store):
    """The page of the study, asked as by a browser on its own machine."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from trustcxr.apps.reader import reader_page

    return TestClient(reader_page.build(store, hosts=("localhost", "127.0.0.1")), base_url="http://localhost")


def ask(api, reader: Reader, path: str, **body: object):
    """Put the body as that reader, or get what is there."""
    headers = {"Authorization": f"Bearer {reader.token}"}
    return (api.put if body else api.get)(f"/api/v1/{path}", headers=headers, **body)


def read_all(store: Store, reader: Reader, ranks: list[int], mark: Mark | None = None) -> None:
    """As if the reader had ranked every image's arms so, and rated them the other way round."""
    for radiograph in range(store.images):
        store.save_mark(reader, radiograph, mark or Mark(regions=[]))
        for arm, rank in enumerate(ranks):
            store.save_judgement(reader, radiograph, arm, Judgement(rank, 6 - rank))


def judged(store: Store, reader: Reader) -> list[Judgement]:
    """The judgements of the reader's first image, in the order of the page."""
    first = store.order(reader)[0]
    return [store.judgements(reader, first)[arm] for arm in store.slots(reader, first)]


def test_the_saved_maps_are_shown_of_images_drawn_by_seed(finished: Path) -> None:
    arms = parse_arms(finished, ARMS[:2])
    shown, again = (draw_images(arms, data=None, count=3, seed=0, study=finished) for _ in range(2))
    assert [f.sample for f in shown] == [f.sample for f in again]
    assert len({f.sample for f in shown}) == 3
    run = load.load_report(finished).runs[0]
    masks = dict(zip(run.panels["sample_id"], run.panels["infection"], strict=True))
    for radiograph in shown:
        assert np.array_equal(decode(radiograph.mask), masks[radiograph.sample])
        pictures = [Image.open(io.BytesIO(png)) for png in (radiograph.picture, *radiograph.maps)]
        assert {picture.size for picture in pictures} == {(120, 144)}  # the file's own, not the network's 48 x 48
        assert all(not picture.info for picture in pictures)  # no text that tells whose it is
        assert radiograph.maps[0] != radiograph.maps[1]


@pytest.mark.slow
def test_with_data_maps_are_made_again_from_the_runs(tmp_path: Path) -> None:
    data = write_files.write(tmp_path / "phantom", {"Train": 1, "Val": 1, "Test": 3}, size=64)
    folders = [small_runs.untrained(tmp_path / f"r{k}", CLASSES, seed=k) for k in range(2)]
    runs = [load.Run(RunDocument(run=folder.name), folder, []) for folder in folders]
    arms = [Arm(runs[0], "gradcam"), Arm(runs[1], "gradcam"), Arm(runs[0], "occlusion")]
    shown = draw_images(arms, data=data, count=2, seed=4)
    assert len({radiograph.sample for radiograph in shown}) == 2
    dataset = load_dataset(data, split="Test", size=32, classes=CLASSES)
    loaded = {folder: load_run(folder) for folder in folders}
    for radiograph in shown:
        row = list(dataset.sample_ids).index(radiograph.sample)
        assert np.array_equal(decode(radiograph.mask), dataset.masks("infection")[row])
        for arm, drawn in zip(arms, radiograph.maps, strict=True):
            panel = examples.make_panels(loaded[arm.run.folder], dataset, {row: ""}, method=arm.method)
            own = read_image(data / str(dataset.table["path"].iloc[row]))
            assert own.shape == (64, 64)
            assert drawn == reader_study._to_png(heatmap_io.overlay(own, panel["saliency"][0], strength=0.55))
    pictures = {png for radiograph in shown for png in radiograph.maps}
    assert len(pictures) > 2, "a network that was never trained may see nothing"
    with pytest.raises(UserError, match="100 are asked for"):
        draw_images(arms, data=data, count=100, seed=4)
    other = load.Run(RunDocument(run="other"), small_runs.untrained(tmp_path / "other"), [])
    with pytest.raises(UserError, match="other classes"):
        draw_images([arms[0], Arm(other, "gradcam")], data=data, count=3, seed=4)


@pytest.mark.parametrize(
    ("arms", "count", "why"),
    [
        ((), 2, "its runs are"),
        (("resnet18-fgsm-s0", "nosuch"), 2, "unknown run 'nosuch'"),
        (("resnet18-fgsm-s0", "resnet18-fgsm-s0"), 2, "said twice"),
        (("resnet18-fgsm-s0", "resnet18-fgsm-s0:layercam"), 2, "saved maps are by gradcam"),
        (("resnet18-fgsm-s0", "resnet18-fgsm-s0:gradcm"), 2, "did you mean"),
        (ARMS, 9, "saved the maps of 5 images, 9 are asked for: give --data"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_line(finished: Path, arms: tuple[str, ...], count: int, why: str) -> None:
    with pytest.raises(UserError, match=why):
        draw_images(parse_arms(finished, arms), data=None, count=count, seed=0, study=finished)


def test_images_that_are_not_there_are_not_replaced_by_small_ones(finished: Path, tmp_path: Path) -> None:
    study, listed = shutil.copytree(finished, tmp_path / "study"), atomic.read_yaml(finished / "data.yaml")["path"]
    data = shutil.copytree(Path(listed).parent, tmp_path / "data")
    atomic.write_yaml(study / "data.yaml", {"path": str(data / "list.csv")})

    def refusal() -> str:
        with pytest.raises(UserError) as problem:
            draw_images(parse_arms(study, ARMS[:2]), data=None, count=2, seed=0, study=study)
        return str(problem.value)

    for path in data.glob("*.png"):
        Image.new("L", (120, 144), 90).save(path)
    assert "not the image whose map is shown. Give --data" in refusal()
    shutil.rmtree(data)
    assert "the images of the study are no longer there. Give --data PATH" in refusal()
    (study / "data.yaml").unlink()
    assert "missing, so the images are not found. Give --data PATH" in refusal()


@pytest.mark.parametrize("resize", ["squeeze", "pad"])
def test_maps_and_masks_lie_where_they_belong_on_the_image(tmp_path: Path, resize: str) -> None:
    image = np.zeros((120, 60), np.uint8)
    image[60:75, 30:45] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    small = squares.resize_image(image, 60, resize)
    spot = (small > 200).astype(np.uint8)
    prepared = reader_study.PreparedImages(["x"], [tmp_path / "x.png"], resize, small[None], spot[None], [spot[None]])
    drawn = reader_study._draw_image(prepared, 0, "x")
    picture, mask, map_ = map(decode, (drawn.picture, drawn.mask, drawn.maps[0]))
    assert picture.shape == (120, 60)
    bright = np.argwhere(picture == 255).mean(axis=0) / picture.shape
    assert np.argwhere(mask == 1).mean(axis=0) / mask.shape == pytest.approx(bright, abs=0.02)
    hot = np.argwhere(map_[..., 0] > 200).mean(axis=0) / picture.shape
    assert hot == pytest.approx(bright, abs=0.03)


def test_one_run_is_read_without_ranks(finished: Path, tmp_path: Path) -> None:
    images = draw_images(parse_arms(finished, ARMS[:1]), data=None, count=3, seed=0, study=finished)
    store = Store.create(tmp_path / "one.sqlite", arms=[f"{ARMS[0]}:gradcam"], images=images)
    api = client(store)
    for reader in (store.add_reader(name) for name in ("R1", "R2")):
        for number in range(3):
            ask(api, reader, f"images/{number}/mark", json={"regions": []})
            ask(api, reader, f"images/{number}/responses", json={"map": 0, "rating": 2 + number % 2})
        assert ask(api, reader, "state").json()["next"] is None
    tables = reader_results.make_tables(reader_results.gather(store), load.load_report(finished).runs)
    assert [table.title for table in tables] == ["Readers: ratings", "Readers: agreement", "Readers: regions"]
    assert tables[0].rows[0][1].value == pytest.approx(7 / 3)


@pytest.mark.parametrize("typed", [("--arm", "x"), ("--data", "x"), ("--images", 7), ("--reader", "R1"), ("--seed", 1)])
def test_results_are_of_the_reading_that_is_there(finished: Path, typed: tuple[object, ...]) -> None:
    assert f"{typed[0]} and --results" in complaint("reader-study", finished, "--results", *typed)


def test_a_study_goes_on_and_shows_no_other(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def begin(**options: object) -> Store:
        return reader_study.open_or_create(finished, reader_study.ReaderOptions(**options))  # type: ignore[arg-type]

    path = reader_study.database_path(finished)
    try:
        first = begin(arms=ARMS, images=2)
        first.add_reader("R1")
        assert [r.token for r in begin().readers()] == [r.token for r in first.readers()]
        assert path.stat().st_mode & 0o077 == 0  # the key is its owner's
        for options, why in (({"arms": ARMS[:2]}, ""), ({"images": 3}, ""), ({"seed": 99}, "drawn by seed 0; ")):
            with pytest.raises(UserError, match=f"{why}move that folder away"):
                begin(**options)
        begin(seed=0, data=tmp_path / "nowhere")
        assert capsys.readouterr().err.count("--data is ignored") == 1
        path.write_bytes(b"nonsense" * 100)
        with pytest.raises(UserError, match="not the file of a reader study"):
            begin()
    finally:
        path.unlink()


def test_other_images_and_those_without_masks_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"Train": 1, "Val": 1, "Test": 2}
    data = write_files.write(tmp_path / "phantom", splits, size=32)
    folder = small_runs.untrained(tmp_path / "run", CLASSES)
    content = atomic.read_yaml(folder / "run.yaml")
    test = load_dataset(data, split="Test", size=32, classes=CLASSES)
    atomic.write_yaml(folder / "run.yaml", content | {"data": {"fingerprints": {"Test": test.fingerprint}}})
    arms = [Arm(load.Run(RunDocument(run="run"), folder, []), m) for m in ("gradcam", "occlusion")]
    assert len(draw_images(arms, data=data, count=2, seed=0)) == 2
    other = write_files.write(tmp_path / "other", splits, size=32, seed=9)
    with pytest.raises(UserError, match="was not tested on these images; give the data of the study"):
        draw_images(arms, data=other, count=2, seed=0)
    monkeypatch.setattr(Dataset, "mask_kinds", property(lambda _: ("lung",)))
    with pytest.raises(UserError, match="no infection masks"):
        draw_images(arms, data=data, count=2, seed=0)


def test_without_a_reader_nothing_is_made(finished: Path) -> None:
    pytest.importorskip("fastapi")
    whole = f"Name them: trustcxr reader-study {finished} --reader NAME"
    for names, why in (((), whole), (("R\n1" * 40,), "1 to 60 printable")):
        with pytest.raises(UserError, match=why):
            reader_study.serve(finished, reader_study.ReaderOptions(arms=ARMS), names, host="127.0.0.1", port=0)
    assert not reader_study.database_path(finished).exists()


def test_a_study_is_made_whole_and_once(finished: Path, store: Store, shown: list[StudyImage], tmp_path: Path) -> None:
    reader = store.readers()[0]
    store.save_mark(reader, 0, Mark(regions=[]))
    store.save_judgement(reader, 0, 0, Judgement(1, 5))
    with pytest.raises(UserError, match="exists already"):
        Store.create(store.path, arms=ARMS, images=shown)
    assert Store(store.path).readers() == store.readers()
    assert Store(store.path).judgements(reader, 0)[0] == Judgement(1, 5)
    with pytest.raises(sqlite3.IntegrityError):  # cut off
        Store.create(tmp_path / "cut.sqlite", arms=ARMS, images=[shown[0], shown[0]])
    assert list(tmp_path.iterdir()) == [store.path]
    path = reader_study.database_path(finished)
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent / LOCK_FILE), pytest.raises(UserError, match="in use by another process; wait for it"):
        reader_study.open_or_create(finished, reader_study.ReaderOptions(arms=ARMS, images=2))
    assert not path.exists()


def test_each_reader_has_an_order_of_their_own_that_stays(store: Store) -> None:
    one, other = store.readers()
    again = Store(store.path)
    assert again.order(one) == store.order(one)
    orders = [[tuple(store.slots(reader, radiograph)) for radiograph in range(4)] for reader in (one, other)]
    assert orders[0] != orders[1]
    assert all(sorted(slots) == [0, 1, 2] for slots in orders[0])
    many = [tuple(store.slots(Reader(k, "", ""), 0)) for k in range(6000)]
    assert all(850 < many.count(slots) < 1150 for slots in set(many))
    assert len(set(many)) == 6


def test_a_choice_is_saved_when_it_is_made(store: Store) -> None:
    reader = store.readers()[0]
    assert store.save_mark(reader, 2, box(0.1, 0.1, 0.5, 0.5))
    assert not store.save_mark(reader, 2, Mark(regions=[]))
    for judgement in (Judgement(rank=2), Judgement(rating=4), Judgement(rank=1)):
        store.save_judgement(reader, 2, 1, judgement)
    again = Store(store.path)
    assert again.judgements(reader, 2)[1] == Judgement(1, 4)
    assert again.done(reader) == []
    assert again.mark(reader, 2) == box(0.1, 0.1, 0.5, 0.5)
    read_all(store, reader, [1, 2, 3])
    assert again.done(reader) == [0, 1, 2, 3]
    assert again.done(store.readers()[1]) == []


@pytest.mark.parametrize(
    ("pragma", "why"), [("max_page_count = 1", "no space left on the disk"), ("query_only = 1", "permission denied")]
)
def test_a_disk_that_refuses_is_told_and_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], pragma: str, why: str
) -> None:
    (reader, other), opened = store.readers(), database._open
    read_all(store, reader, [1, 2, 3])

    @contextmanager
    def refusing(path: Path) -> Iterator[sqlite3.Connection]:
        with opened(path) as base:
            base.execute(f"PRAGMA {pragma}")  # of pages: no fewer than there are
            yield base

    monkeypatch.setattr(database, "_open", refusing)
    outline = {"kind": "outline", "points": [[k / 601, 1 - k / 607] for k in range(600)]}  # the largest that may be
    large = {"regions": [outline] * 20}
    with pytest.raises(UserError, match=why):
        store.save_mark(other, 0, Mark.model_validate(large))
    refused = ask(client(store), other, "images/0/mark", json=large)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not-saved")
    assert str(store.path) not in refused.text
    assert why in capfd.readouterr().err
    assert store.done(reader) == [0, 1, 2, 3]
    assert store.mark(other, 0) is None


@pytest.mark.parametrize("side", [64, 224])
def test_a_region_has_the_pixels_whose_middles_lie_in_it(side: int) -> None:
    outline = region("outline", [[0.25, 0.25], [0.5, 0.25], [0.5, 0.5], [0.25, 0.5]])
    quarter = np.zeros((side, side), np.uint8)
    quarter[side // 4 : side // 2, side // 4 : side // 2] = 1
    for mark in (outline, box(0.25, 0.25, 0.5, 0.5)):
        assert np.array_equal(draw_mask(mark, side, side), quarter)
    left, right = (draw_mask(box(x, 0, x + 0.37, 1), side, side) for x in (0, 0.37))
    assert not (left & right).any(), "what touches shares no pixel"


def test_an_outline_has_the_pixels_that_matplotlib_says_lie_in_it() -> None:
    draw = np.random.default_rng(4)
    middles = (np.mgrid[:30, :40].reshape(2, -1).T[:, ::-1] + 0.5) / (40, 30)
    for _ in range(20):
        turn = np.sort(draw.uniform(0, 2 * np.pi, 12))
        points = 0.5 + draw.uniform(0.1, 0.5, (12, 1)) * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        inside = Path2D(points).contains_points(middles).reshape(30, 40)
        assert np.array_equal(draw_mask(region("outline", points.tolist()), 30, 40), inside)


def test_regions_become_pixels() -> None:
    assert draw_mask(box(0.75, 0.25, 0.25, 0.5), 9, 9).sum() == 2 * 5
    assert draw_mask(region("outline", [[0, 0], [1, 0], [1, 1], [0, 1]]), 6, 8).all()
    assert not draw_mask(Mark(regions=[]), 6, 8).any()
    for tiny in (box(0.99, 0.31, 1, 0.32), region("outline", [[0.99, 0.31], [1, 0.32], [0.99, 0.32]])):
        assert np.argwhere(draw_mask(tiny, 10, 10)).tolist() == [[3, 9]], "smaller than a pixel is a pixel"
    for bad in ([[0, 0]], [[0, 0], [1, 2]], [[0, 0], [1, 1], [0, 1]], [[0, 0], [float("nan"), 1]]):
        with pytest.raises(ValueError, match="regions"):
            region("box", bad)


def test_the_api_shows_maps_after_the_mark_and_never_whose_they_are(store: Store) -> None:
    one, other = store.readers()
    with client(store) as api:
        mine = partial(ask, api, one)
        assert api.get("/api/v1/state").status_code == 401
        assert api.get("/api/v1/state", headers={"Authorization": "Bearer x"}).json()["error"]["code"] == "no-token"
        assert mine("state").json()["next"] == 0
        assert mine("images/0/maps/0.png").status_code == 409
        assert mine("images/0/responses", json={"map": 0, "rank": 1}).status_code == 409
        mark = {"regions": [{"kind": "box", "points": [[0.1, 0.2], [0.4, 0.5]]}]}
        assert mine("images/0/mark", json=mark).json()["mark"] == mark
        assert mine("images/0/mark", json={"regions": []}).status_code == 409
        radiograph = store.order(one)[0]
        for place, arm in enumerate(store.slots(one, radiograph)):
            assert mine(f"images/0/maps/{place}.png").content == store.map(radiograph, arm)
            found = mine("images/0/responses", json={"map": place, "rank": place + 1, "rating": 5})
            assert found.json()["responses"][place] == {"map": place, "rank": place + 1, "rating": 5}
        assert judged(store, one) == [Judgement(rank, 5) for rank in (1, 2, 3)]
        assert mine("state").json() | {"reader": ""} == {
            "reader": "", "images": 4, "maps": 3, "ratings": [1, 2, 3, 4, 5], "done": [0], "next": 1,
        }  # fmt: skip
        assert ask(api, other, "state").json()["done"] == []
        for body in ({"map": 0, "rank": 4}, {"map": 0, "rating": 6}):
            assert mine("images/0/responses", json=body).status_code == 422, body
        for body in ({"regions": [{"kind": "box", "points": [[0, 0]]}]}, {"regions": [], "more": 1}):
            assert mine("images/1/mark", json=body).status_code == 422, body
        assert mine("images/1/mark", content=b" " * (2 << 20)).status_code == 413
        assert mine("images/9").status_code == 404
        assert mine("images/0/maps/7.png").status_code == 404
        assert api.get("/nowhere").json()["error"]["code"] == "not-found"
        assert api.get("/", headers={"host": "evil.example"}).status_code == 421
        told = "".join(mine(path).text for path in ("state", "images/0", "images/1"))
        told += "".join(api.get(path).text for path in ("/", "/reader.js", "/openapi.json"))
        secrets = ("resnet", "fgsm", "gradcam", store.samples()[0][0], repr(store.order(one)))
        assert not any(word in told for word in secrets)


def test_results_are_preference_agreement_and_the_human_benchmark(store: Store, finished: Path, tmp_path: Path) -> None:
    one, other = store.readers()
    with pytest.raises(UserError, match="Wait for the readers"):
        reader_results.write_tables(reader_results.gather(store), [], tmp_path)
    read_all(store, one, [1, 2, 3], box(0.2, 0.4, 0.45, 0.8))
    read_all(store, other, [1, 3, 2], box(0.2, 0.4, 0.45, 0.8))
    runs = load.load_report(finished).runs
    rows = [
        {"sample_id": sample, "group": group, "method": "gradcam", "condition": "clean", "measure": name, "value": 0.25}
        for sample, group, _ in store.samples()
        for name in reader_results.SCORED
    ]
    atomic.write_table(runs[0].folder / "saliency.parquet", pd.DataFrame(rows))
    results = reader_results.gather(store)
    found = {table.title.split(": ")[1]: table for table in reader_results.make_tables(results, runs)}
    best, *rest = found["preference"].rows
    assert (best[0].text, best[3].value, best[4].small) == (f"{ARMS[0]}:gradcam", 1, "")  # all rate it alike
    assert best[1].value > 0.9
    assert best[3].small != "100.0 to 100.0"
    assert [row[4].value for row in found["preference"].rows] == [5, 3.5, 3.5]
    assert all(row[1].value < 0.5 for row in rest)
    agreed = {row[0].text: row[1].value for row in found["agreement"].rows}
    assert agreed["regions: mean IoU of two readers"] == 1
    assert 0 < agreed["ranks: Krippendorff’s alpha, ordinal"] < 1
    people, first, _, model = found["regions"].rows
    assert people[1].value == pytest.approx(reader_results.reader_scores(results)["infection_energy"].mean())
    assert first[1].value == pytest.approx(people[1].value)
    marked = draw_mask(box(0.2, 0.4, 0.45, 0.8), 48, 48)
    shares = [(marked & mask).sum() / (marked | mask).sum() for mask in results.masks]
    assert people[2].value == pytest.approx(np.mean(shares))
    assert model[0].text == f"{ARMS[0]}:gradcam"
    assert model[1].value == pytest.approx(0.25)
    assert "to" in model[1].second
    written = reader_results.write_tables(results, runs, tmp_path / "out")
    assert sorted({p.suffix for p in written}) == [".csv", ".md", ".tex"]
    page = written[0].read_text(encoding="utf-8")
    assert all(words in page for words in ("the human benchmark", "Not for diagnosis", "R1 4, R2 4")), page
    (runs[0].folder / "saliency.parquet").unlink()


def test_maps_that_share_the_first_place_are_not_the_one_that_is_named_first(store: Store) -> None:
    for reader, ranks in zip(store.readers(), ([1, 1, 2], [1, 2, 3]), strict=True):
        read_all(store, reader, ranks)
    agreed = {row[0].text: row[1].value for row in reader_results.make_tables(reader_results.gather(store), [])[2].rows}
    assert agreed["which map is best: Fleiss’ kappa"] == pytest.approx(-1)


@contextmanager
def serving(store: Store) -> Iterator[str]:
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(client(store).app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def reading(store: Store, browser: object, reader: Reader) -> Iterator[browsers.Opened]:
    """The reader's page in a browser, at the first image."""
    with serving(store) as address, browsers.opened(browser, f"{address}#token={reader.token}") as found:
        found.page.locator("h1", has_text="Image 1 of 4").wait_for()
        yield found


def choice(page, letter: str, kind: str, number: int):
    return page.get_by_role("group", name=f"Map {letter}: {kind}").get_by_label(str(number), exact=True)


def mark_a_box(page) -> None:
    ink = page.locator("#ink")
    ink.scroll_into_view_if_needed()
    where = ink.bounding_box()
    page.mouse.move(where["x"] + 0.25 * where["width"], where["y"] + 0.25 * where["height"])
    page.mouse.down()
    page.mouse.move(where["x"] + 0.5 * where["width"], where["y"] + 0.6 * where["height"], steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Save the marks").click()
    page.locator("#judging").wait_for(state="visible")


def judge(page, ranks: tuple[int, ...]) -> None:
    for letter, rank in zip("ABC", ranks, strict=True):
        choice(page, letter, "rank", rank).check()
        choice(page, letter, "rating", 6 - rank).check()


@pytest.mark.slow
def test_a_reader_marks_ranks_rates_comes_back_and_goes_on(store: Store, browser: object) -> None:
    reader = store.readers()[0]
    with serving(store) as address:
        link = f"{address}#token={reader.token}"
        for size, dark in (("phone", True), ("tablet", False)):
            with browsers.opened(browser, link, size=size, dark=dark) as first:
                first.page.locator("#image").wait_for()
                assert browsers.violations(first.page) == []
        with browsers.opened(browser, link) as first:
            page = first.page
            page.locator("h1", has_text="Image 1 of 4").wait_for()
            mark_a_box(page)
            judge(page, (2, 1, 3))
            assert browsers.violations(page) == []
            page.get_by_role("button", name="Next image").click()
            page.locator("h1", has_text="Image 2 of 4").wait_for()
            mark_a_box(page)
            choice(page, "B", "rank", 1).check()
            page.locator("#status", has_text="Saved.").wait_for()
            assert first.complaints == []
            assert first.elsewhere(address) == []
            assert reader.token not in page.url
        assert judged(store, reader) == [Judgement(2, 4), Judgement(1, 5), Judgement(3, 3)]
        (drawn,) = store.mark(reader, store.order(reader)[0]).regions
        assert np.array(drawn.points) == pytest.approx(np.array([[0.25, 0.25], [0.5, 0.6]]), abs=0.02)
        with browsers.opened(browser, link) as again:  # another day: where the reader stopped, with what was said
            page = again.page
            page.locator("#judging").wait_for(state="visible")
            assert choice(page, "B", "rank", 1).is_checked()
            for number in (2, 3, 4):
                page.locator("h1", has_text=f"Image {number} of 4").wait_for()
                if number > 2:
                    page.get_by_role("button", name="No finding here").click()
                    page.locator("#judging").wait_for(state="visible")
                judge(page, (3, 1, 2))
                page.get_by_role("button", name="Next image").click()
            page.locator("#end").wait_for(state="visible")
            assert again.complaints == []
    assert len(store.done(reader)) == 4


@pytest.mark.full
def test_a_choice_that_is_not_saved_is_not_shown_and_is_told_until_it_is(store: Store, browser: object) -> None:
    reader = store.readers()[0]
    with reading(store, browser, reader) as found:
        page, problem = found.page, found.page.locator("#problem")
        mark_a_box(page)
        judge(page, (2, 1, 3))
        page.locator("#next:not([disabled])").wait_for()
        page.route("**/responses", lambda sent: sent.abort())
        choice(page, "A", "rank", 3).check()
        page.get_by_role("button", name="Next image").click()
        page.locator("#problem", has_text="Map A: rank was not saved").wait_for()
        assert choice(page, "A", "rank", 2).is_checked()
        assert page.locator("h1").inner_text() == "Image 1 of 4"
        assert judged(store, reader)[0] == Judgement(2, 4)
        page.unroute("**/responses")
        choice(page, "B", "rating", 4).check()
        page.locator("#status", has_text="Saved.").wait_for()
        assert problem.inner_text().startswith("Map A: rank was not saved; the old choice stays")
        choice(page, "A", "rank", 3).check()
        problem.wait_for(state="hidden")
        assert judged(store, reader)[0] == Judgement(3, 4)
        page.evaluate("document.getElementById('status').textContent = ''")
        page.route("**/responses", lambda sent: (sent.fetch(), sent.abort()))  # saved, and the answer is lost
        choice(page, "A", "rank", 1).check()
        page.locator("#status", has_text="Saved.").wait_for()
        assert choice(page, "A", "rank", 1).is_checked()
        assert judged(store, reader)[0] == Judgement(1, 4)
        page.get_by_role("button", name="Next image").click()
        page.locator("h1", has_text="Image 2 of 4").wait_for()
        assert problem.is_hidden()


def tab_to(page, wanted: str, key: str = "Tab") -> None:
    """Press Tab until the element with that id, or that name of a radio button, has the focus."""
    for _ in range(25):
        page.keyboard.press(key)
        if page.evaluate("document.activeElement.id || document.activeElement.name") == wanted:
            return
    raise AssertionError(f"{wanted} is not reached with {key}")


def press(page, *keys: str) -> None:
    """Press keys; "Enter x3" is three times Enter."""
    for name, _, times in (key.partition(" x") for key in keys):
        for _ in range(int(times or 1)):
            page.keyboard.press(name)


def press_on(page, button: str, key: str = "Tab") -> None:
    """Reach a button with the key, press it, and wait for the maps."""
    tab_to(page, button, key)
    press(page, "Enter")
    page.locator("#judging").wait_for(state="visible")


def judge_by_keys(page) -> None:
    """Map A has rank 1, B 2 and C 3; each the rating 1."""
    for place in range(3):
        tab_to(page, f"rank-{place}")
        press(page, "Space", *["ArrowRight"] * place)
        tab_to(page, f"rating-{place}")
        press(page, "Space")
    page.locator("#next:not([disabled])").wait_for()
    tab_to(page, "next")
    press(page, "Enter")


@pytest.mark.full
def test_a_reader_needs_no_mouse(store: Store, browser: object) -> None:
    reader = store.readers()[1]
    with reading(store, browser, reader) as found:
        page = found.page
        tab_to(page, "ink")
        press(page, "Shift+ArrowLeft x5", "Shift+ArrowUp x5", "Enter")
        press(page, "Shift+ArrowRight x5", "Shift+ArrowDown x7", "ArrowDown", "ArrowUp", "Enter")
        marks = page.locator("#where").inner_text()
        assert marks == "1 mark on the image. Cross at 50 % from the left, 60 % from the top."
        assert browsers.violations(page) == []
        press_on(page, "save", "Shift+Tab")
        page.locator("#judging-title:focus").wait_for()
        judge_by_keys(page)
        page.locator("h1", has_text="Image 2 of 4").wait_for()
        tab_to(page, "tool")
        press(page, "ArrowRight")
        tab_to(page, "ink")
        press(page, "Enter", "ArrowRight", "Escape")  # given up
        press(page, "Enter", "Shift+ArrowRight x2", "Enter", "Shift+ArrowDown x2", "Enter", "Enter")
        press(page, "Enter", "Shift+ArrowLeft x2", "Enter", "Shift+ArrowUp", "Enter", "Enter", "Backspace")
        press_on(page, "save", "Shift+Tab")
        judge_by_keys(page)
        page.locator("h1", has_text="Image 3 of 4").wait_for()
        press_on(page, "none")
        assert found.complaints == []
    assert [store.mark(reader, radiograph) for radiograph in store.order(reader)[:3]] == [
        box(0.25, 0.25, 0.5, 0.6), region("outline", [[0.51, 0.5], [0.61, 0.5], [0.61, 0.6]]), Mark(regions=[]),
    ]  # fmt: skip
    assert judged(store, reader) == [Judgement(1, 1), Judgement(2, 1), Judgement(3, 1)]
