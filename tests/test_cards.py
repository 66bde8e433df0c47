"""One training shared by several processes, or worked off in parts: the same gradients, every image judged once."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from small_runs import MODEL, Splits, networks, recipe, same, weights
from test_cli import complaint
from test_study import tiny
from trustcxr.data.loader import BatchRows, augment
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.models import factory
from trustcxr.report import model_card as report_cards
from trustcxr.runs import run_folder
from trustcxr.storage import atomic, segments
from trustcxr.study import engines
from trustcxr.study.run_study import Study
from trustcxr.training import fit_run, monitor
from trustcxr.training.devices import Devices
from trustcxr.training.step import TrainingStep

GROUP = {"normalisation": "group"}  # BatchNorm looks at the images beside it, so parts would differ
Gradients = list[dict[str, Tensor]]


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Gradients:
    """The gradients of every step of this process."""
    found: Gradients = []

    def keep(self: TrainingStep, optimizer: Any) -> None:
        found.append({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(TrainingStep, "on_before_optimizer_step", keep)
    return found


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """How many images a batch may have from some step on, and those of the batches that were worked off."""
    room, real = SimpleNamespace(most=4, after=0, worked=[]), TrainingStep._on

    def on(self: TrainingStep, part: slice, pixels: Tensor, *rest: Any) -> Any:
        if self.global_step >= room.after and len(pixels) > room.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        room.worked.append(len(pixels))
        return real(self, part, pixels, *rest)

    monkeypatch.setattr(TrainingStep, "_on", on)
    return room


def furthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_statistics_of_all_processes_leave_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    net, images = timm.create_model("test_efficientnet", in_chans=1).eval(), torch.rand(2, 1, 64, 64)
    assert any(isinstance(layer, BatchNormAct2d) for layer in net.modules())
    with torch.no_grad():
        before = net(images)
        shared = Devices(devices=2).share_statistics(net)
        assert torch.allclose(shared(images), before, atol=1e-6)
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in shared.modules())
    assert "sync_batchnorm" not in Devices(devices=2).trainer_options(), "Lightning's loses activations"


def test_every_image_of_a_batch_is_in_one_part_and_augmented_as_in_the_whole() -> None:
    whole = list(BatchRows(np.arange(23), 5, shuffle=True, seed=3))
    parts = [list(BatchRows(np.arange(23), 5, shuffle=True, seed=3, part=(k, 2))) for k in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    assert [len(batch) for batch in parts[0]] == [2, 2, 2, 2, 1]
    few = [row for k in range(4) for batch in BatchRows(np.arange(6), 5, part=(k, 4)) for row in batch]
    assert sorted(few) == list(range(6)), "a last batch of fewer images than there are processes"
    images = torch.rand(7, 1, 16, 16)
    augmented = augment(images, torch.Generator().manual_seed(1), flip=0.5)
    part = augment(images[3:5], torch.Generator().manual_seed(1), part=(3, 7), flip=0.5)
    torch.testing.assert_close(part, augmented[3:5], rtol=0, atol=0)


@pytest.mark.parametrize("defence", ["fgsm", "free"])
def test_parts_add_up_to_the_gradients(defence: str, radiographs: Splits, tmp_path: Path, gradients: Gradients) -> None:
    for parts in (1, 3):
        how = recipe(defence, model=GROUP, epochs=1, batch_size=40, accumulate=parts)
        fit_run.fit(how, *radiographs, tmp_path / str(parts))
    half = len(gradients) // 2
    assert furthest(gradients[0], gradients[half]) < 1e-5
    assert furthest(gradients[0], {name: torch.zeros_like(g) for name, g in gradients[0].items()}) > 1e-2
    first, second = (atomic.read_table(tmp_path / n / "history.csv") for n in "13")
    assert second["train_loss"][0] == pytest.approx(first["train_loss"][0], abs=1e-4)


GUIDED = {"guidance": 2.0, "guidance_on": "gradients"}


@pytest.mark.slow
@pytest.mark.parametrize("keys", [GUIDED, {"background": "emptied"}])
def test_a_mean_of_some_images_is_that_of_the_whole_batch_whatever_its_parts(
    keys: dict[str, Any], radiographs: Splits, gradients: Gradients, tmp_path: Path
) -> None:
    for parts in (1, 2, 4, 8):
        how = recipe(model=GROUP, epochs=1, batch_size=40, accumulate=parts, **keys)
        fit_run.fit(how, *radiographs, tmp_path / str(parts))
    whole, *others = gradients
    # The sums' order differs, and how far by processor: 1e-6 of a largest gradient of 1.1 was passed on one.
    assert [furthest(whole, other) < 1e-5 for other in others] == [True] * 3
    fit_run.fit(recipe(model=GROUP, epochs=1, batch_size=40), *radiographs, tmp_path / "without")
    assert furthest(whole, gradients[-1]) > 1e-3, "what is asked for has an effect"


def test_a_batch_that_does_not_fit_is_halved_and_that_is_said(
    radiographs: Splits, tmp_path: Path, room: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    how = recipe("fgsm", model=GROUP, epochs=1)
    assert fit_run.fit(how, *radiographs, tmp_path / "halved").steps == 3
    assert room.worked == [4] * 12
    assert "a batch does not fit in memory: using 4 parts" in capsys.readouterr().err
    fit_run.fit(recipe("fgsm", model=GROUP, epochs=1, accumulate=4), *radiographs, tmp_path / "a")
    assert same(weights(tmp_path / "halved"), weights(tmp_path / "a")), "as if it had been asked for"
    for place in ("halved", "a"):
        assert atomic.read_json(tmp_path / place / "training.json")["parts"] == 4
        assert atomic.read_yaml(tmp_path / place / "run.yaml")["segments"][-1]["split_batches"] == {"parts": 4}
        assert "- Batches: worked off in 4 parts\n" in report_cards.render_card(tmp_path / place)
    room.most = 0
    with pytest.raises(UserError, match="not even one image fits in memory"):
        fit_run.fit(how, *radiographs, tmp_path / "never")


def test_a_run_that_was_begun_goes_on_in_more_parts(radiographs: Splits, tmp_path: Path) -> None:
    """As is advised where a batch does not fit and nobody can halve it."""
    fit_run.fit(recipe("fgsm", epochs=1), *radiographs, tmp_path)
    folder = run_folder.RunFolder(tmp_path)
    folder.check_recipe(recipe("fgsm", epochs=1, accumulate=2))
    with pytest.raises(UserError, match="another run"):
        folder.check_recipe(recipe("fgsm", epochs=1, batch_size=8))


@pytest.mark.parametrize("nodes", [1, 2])
def test_processes_that_others_started_are_not_waited_for_without_room(
    nodes: int, radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.setenv(variable, "0")
    monkeypatch.setattr(fit_run, "_fit_part", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    cards = Devices(devices=2 if nodes == 1 else 1, nodes=nodes)
    said = r"does not fit in memory; start all of them again with --set training\.accumulate=2"
    with pytest.raises(UserError, match=said):
        fit_run.fit(recipe("fgsm", batch_size=8), *radiographs, tmp_path, devices=cards)


def test_a_later_split_of_batches_is_a_stretch(radiographs: Splits, tmp_path: Path, room: SimpleNamespace) -> None:
    room.most, room.after = 8, 4  # three steps an epoch
    found = fit_run.fit(recipe("fgsm"), *radiographs, tmp_path)
    assert (found.parts, found.world, found.strategy) == (2, None, None)
    listed = segments.read_segments(atomic.read_yaml(tmp_path / "run.yaml"))
    assert [(one["from_epoch"], one.get("split_batches")) for one in listed] == [(0, None), (1, {"parts": 2})]
    said = "from epoch 1 with batches whole; from epoch 2 with batches worked off in 2 parts"
    assert segments.describe_segments(tmp_path) == said
    card = report_cards.render_card(tmp_path)
    assert "- Batches: worked off in 2 parts; BatchNorm statistics over one part at a time\n" in card
    assert f"- Resumed on a different machine or version: {said}\n" in card


@pytest.mark.parametrize(
    ("asked", "defence", "said"),
    [
        (Devices(devices=0), "fgsm", "--devices 0: expected 1 or more"),
        (Devices(devices=2, strategy="dpp"), "fgsm", "unknown strategy 'dpp': did you mean ddp"),
        (Devices(devices=17), "fgsm", "17 processes share each batch, and training.batch_size is smaller"),
        (Devices(devices=2), "free", "free keeps a state"),
        (Devices(nodes=2), "fgsm", "--nodes 2: start the same command on every machine, by srun or by torchrun"),
    ],
)
def test_what_cannot_be_shared_is_refused(asked: Devices, defence: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        asked.check_recipe(recipe(defence), 48)


@pytest.mark.slow
@pytest.mark.sample("standard")
@pytest.mark.parametrize("defence", ["standard", "fgsm"])
def test_two_processes_have_the_gradients_of_one_and_an_attack_synchronises_nothing(
    defence: str, radiographs: Splits, tmp_path: Path, gradients: Gradients, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def count(self: TrainingStep) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        def hook(group, bucket):  # type: ignore[no-untyped-def]  # torch reads what it is annotated with
            sent.append(bucket.index())
            return allreduce_hook(group, bucket)

        if self.devices.world > 1:
            self.trainer.strategy.model.register_comm_hook(None, hook)  # type: ignore[union-attr]

    monkeypatch.setattr(TrainingStep, "on_train_start", count)
    how = recipe(defence, model=GROUP, epochs=1, batch_size=47, ema_decay=0.5)  # uneven: 23 and 24 images
    found = [fit_run.fit(how, *radiographs, tmp_path / str(n), devices=Devices(devices=n)) for n in (1, 2)]
    assert furthest(gradients[0], gradients[1]) < 1e-5
    assert len(gradients) == 2
    assert sent == sorted(set(sent)), "each gradient once, however many passes an attack makes"
    assert sent
    first, second = (atomic.read_table(tmp_path / n / "history.csv") for n in "12")
    for column in first.columns.drop("seconds"):
        assert second[column][0] == pytest.approx(first[column][0], abs=1e-4), column
    assert found[0].steps == found[1].steps
    assert not {"parts", "world", "strategy"} & set(atomic.read_json(tmp_path / "1" / "training.json"))
    said = atomic.read_json(tmp_path / "2" / "training.json")
    assert (said["world"], said["strategy"], said.get("parts")) == (2, "ddp", None)
    (*_, last) = atomic.read_yaml(tmp_path / "2" / "run.yaml")["segments"]
    assert last["split_batches"] == {"world": 2, "strategy": "ddp"}
    assert "- Batches: shared by 2 processes (ddp)\n" in report_cards.render_card(tmp_path / "2")
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == sorted(p.name for p in (tmp_path / "2").iterdir())


@pytest.mark.full
def test_a_lost_process_ends_the_training(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mortal(self: TrainingStep) -> None:
        others.extend(multiprocessing.active_children())
        for process in others:
            process.kill()

    others: list[Any] = []
    monkeypatch.setattr(TrainingStep, "on_train_epoch_start", mortal)
    with pytest.raises(UserError, match=r"a process of the training ended with code -9 \(killed, or out of memory"):
        fit_run.fit(recipe(model=GROUP), *radiographs, tmp_path, devices=Devices(devices=2))
    assert others
    assert not any(process.is_alive() for process in others)
    assert not torch.distributed.is_initialized()


def test_validation_of_parts_adds_up(radiographs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each of three processes counts, summed by hand, on a number of images that three does not divide."""
    model, how = factory.build("test_resnet", classes=3, weights="none"), recipe("fgsm")
    whole = monitor.validate(model, radiographs[0], how, torch.device("cpu"))
    counted: list[list[float]] = []

    class Part(Devices):
        def sum(self, values: Tensor) -> Tensor:
            counted[-1].append(float(values))
            return values

    for rank in range(5):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        counted.append([])
        monitor.validate(model, radiographs[0], how, torch.device("cpu"), Part(devices=5))
    images, watched = len(radiographs[0]), len(monitor.attacked_rows(radiographs[0]))
    sums = np.sum(counted, axis=0) / [images, watched, watched]
    assert sums == pytest.approx(list(whole.values()))


@pytest.mark.full
def test_the_script_for_cards_needs_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.speed import gpu

    monkeypatch.setattr("sys.argv", ["gpu", "--dry-run"])
    gpu.main()
    said = capsys.readouterr().out
    assert said.count("images/s") == 6
    assert said.count("waiting for data") == 4
    assert "figures of nothing" in said
    assert "paper: 21 networks and 6 trained by FGSM, attacks on them included" in said
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no card here: --dry-run"):
        gpu.main()


@pytest.mark.parametrize(("engine", "asked"), [("local", ["--jobs", 2]), ("ray", [])])
def test_several_cards_are_for_one_run_at_a_time_here(engine: str, asked: list[object], tmp_path: Path) -> None:
    words = ["--data", tmp_path, "--out", tmp_path / "out", "--devices", 2, "--engine", engine, *asked]
    assert "with --engine local, one --jobs" in complaint("study", "quick", *words)


def test_a_study_refuses_before_any_image_what_cannot_be_shared(tmp_path: Path) -> None:
    content = {"name": "free", "data": {"size": 32}, "models": networks(MODEL), "defences": [{"name": "free"}]}
    atomic.write_yaml(tmp_path / "free.yaml", content)
    words = ("--data", tmp_path / "gone", "--out", tmp_path / "out", "--devices", 2)
    assert "free keeps a state for each process" in complaint("study", tmp_path / "free.yaml", *words)


@pytest.mark.full
def test_a_study_on_two_devices_trains_each_run_on_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_files.write(tmp_path / "phantom", {"Train": 8, "Val": 4, "Test": 3}, size=32)
    models = [networks(MODEL)[0] | GROUP]
    study = tiny(models=models, explanation={"methods": ["layercam"], "corruptions": [], "sample": 0, "panels": 0})
    worlds: list[int] = []
    real = Devices.trainer_options
    monkeypatch.setattr(Devices, "trainer_options", lambda self: (worlds.append(self.world), real(self))[1])
    for count in (1, 2):
        Study(study, data, tmp_path / str(count), engines.get("local"), devices=count).run()
    assert worlds == [1, 1, 2, 2]
    for name in (f"{MODEL}-standard-s0", f"{MODEL}-fgsm-s0"):
        one, two = (weights(tmp_path / str(devices) / "runs" / name) for devices in (1, 2))
        assert furthest(one, two) < 1e-3, "the same mathematics, summed in another order"
        assert (tmp_path / "2" / "runs" / name / "metrics.json").is_file()
