"""Keras files: the answers of Keras and of the formulas, gradients, all that an audit does; code and claims refused."""

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foreign_models import CLASSES, SIDE, refused, steepest_slopes
from test_cli import run
from trustcxr import attacks, explain
from trustcxr.attacks.adaptive import probe_gradients
from trustcxr.audit.active_test import active_test
from trustcxr.audit.entry_checks import changed_parts, describe_state
from trustcxr.audit.formats import describe_file, load
from trustcxr.audit.formats.wrapper import is_layer_output
from trustcxr.models.fuse_batchnorm import make_fused_copy

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def keras() -> Any:
    if os.environ.setdefault("KERAS_BACKEND", "torch") != "torch":
        pytest.skip("another backend is asked for")
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand((20, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))


def network(keras: Any, *layers: Any, last: str = "softmax") -> Any:
    """A small network of channels last with a rescaling layer; its BatchNorm has seen something."""
    parts = keras.layers
    keras.utils.set_random_seed(0)
    body = [parts.Input((SIDE, SIDE, 3)), parts.Rescaling(1 / 127.5, offset=-1.0)]
    body += [parts.Conv2D(8, 3, strides=2, padding="same", use_bias=False), parts.BatchNormalization(), parts.ReLU()]
    body += [parts.DepthwiseConv2D(3, activation="relu"), *layers, parts.Dropout(0.5), parts.GlobalAveragePooling2D()]
    model = keras.Sequential([*body, parts.Dense(3, activation=last, bias_initializer="random_normal")])
    model(torch.rand((16, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(1)) * 255, training=True)
    return model


def saved(model: Any, path: Path) -> Path:
    model.save(path)
    return path


def loaded(path: Path, **options: Any) -> Any:
    options = {"classes": CLASSES, "output": "probabilities", "size": SIDE, "channels": 3, "range": (0, 255)} | options
    return load(path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_answers_are_those_of_keras(suffix: str, keras: Any, images: torch.Tensor, tmp_path: Path) -> None:
    model = network(keras)
    external = loaded(saved(model, tmp_path / f"m{suffix}"))
    expected = model.predict(images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy() * 255, verbose=0)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the answers differ between images"
    assert np.abs(external.model.answers(images).detach().numpy() - expected).max() < 1e-4
    assert (external.origin.kind, external.origin.gradients) == ("Keras", "own")
    assert external.origin.parameters == model.count_params()
    assert torch.allclose(external.model(images).softmax(1), torch.from_numpy(expected), atol=1e-5)


@pytest.mark.slow
def test_the_answers_are_those_of_the_formulas(keras: Any, images: torch.Tensor, tmp_path: Path) -> None:
    """A convolution and a dense layer in numpy, from the numbers of the file: no library's own way through it."""
    parts = keras.layers
    layers = [parts.Input((SIDE, SIDE, 1)), parts.Conv2D(6, 5, strides=3, activation="relu"), parts.Flatten()]
    path = saved(keras.Sequential([*layers, parts.Dense(3, name="last")]), tmp_path / "m.h5")
    with h5py.File(path) as file:
        names: list[str] = []
        file.visit(names.append)
        by_shape = {file[n].ndim: file[n][()].astype(np.float64) for n in names if n.endswith("kernel")}
    views = np.lib.stride_tricks.sliding_window_view(images[:, 0].double().numpy(), (5, 5), (1, 2))[:, ::3, ::3]
    maps = np.maximum(np.einsum("bhwij,ijk->bhwk", views, by_shape[4][:, :, 0]), 0)  # biases begin at 0
    expected = maps.reshape(len(images), -1) @ by_shape[2]
    external = loaded(path, channels=1, range=(0, 1), output="logits")
    assert np.abs(external.model(images).detach().numpy() - expected).max() < 1e-4
    assert is_layer_output(external.model.net, external.model.prepare(images))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_audit_works_and_changes_no_state(suffix: str, keras: Any, images: torch.Tensor, tmp_path: Path) -> None:
    """What prepares attacks leaves Keras's own attributes as they are: a change would be called a memory."""
    model = loaded(saved(network(keras), tmp_path / f"m{suffix}")).model
    state = describe_state(model, images[:2])
    slope, difference = steepest_slopes(model, images[:4], 1e-2)
    assert torch.allclose(difference, slope, rtol=0.05)
    with torch.no_grad():
        labels = model(images).argmax(1)
    adversarial = attacks.pgd(model, images, labels, epsilon=0.1, steps=5)
    with torch.no_grad():
        before, after = (model(x).softmax(1)[range(20), labels] for x in (images, adversarial))
    assert bool((after < before).all())
    assert explain.grad_cam(model, images[:2]).shape == (2, SIDE, SIDE)
    traits = probe_gradients(model, images)
    assert (traits.random, traits.zero_gradients) == (False, 0)
    planted = active_test(model, images[:4], epsilon=0.1, traits=traits)
    assert planted is not None
    assert planted.count > 0
    make_fused_copy(model, images[:2])
    assert changed_parts(state, describe_state(model, images[:2])) == []


def rewritten(path: Path, change: Callable[[Any], None]) -> Path:
    """The .h5 file with its configuration changed."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)
    return path


@pytest.mark.slow
def test_a_file_of_keras_2_has_its_groups_and_lists_of_one(keras: Any, images: torch.Tensor, tmp_path: Path) -> None:
    inputs = keras.Input((SIDE, SIDE, 3))
    inner = keras.Model(inputs, keras.layers.DepthwiseConv2D(3, name="deep")(keras.layers.Conv2D(4, 3)(inputs)))
    pooled = keras.layers.GlobalAveragePooling2D()
    outer = keras.Sequential([keras.Input((SIDE, SIDE, 3)), inner, pooled, keras.layers.Dense(3, activation="softmax")])
    path = saved(outer, tmp_path / "m.h5")

    def change(config: Any) -> None:
        functional = config["config"]["layers"][1]["config"]
        functional["output_layers"], functional["input_layers"] = [["deep", 0, 0]], [functional["input_layers"]]
        next(layer for layer in functional["layers"] if layer["config"]["name"] == "deep")["config"]["groups"] = 1

    expected = loaded(path, range=(0, 1)).model.answers(images)
    assert torch.allclose(loaded(rewritten(path, change), range=(0, 1)).model.answers(images), expected, atol=1e-6)


@pytest.mark.slow
def test_a_draft_has_what_the_file_tells(keras: Any, tmp_path: Path) -> None:
    path = saved(network(keras), tmp_path / "m.h5")
    (tmp_path / "labels.txt").write_text("0 Normal\n1 Covid19\n2 Viral Pneumonia\n")
    text = describe_file(path)
    names = 'classes: ["Normal", "Covid19", "Viral Pneumonia"]'
    for line in ("range: [0, 255]", "kind: probabilities", names, f"size: {SIDE}"):
        assert f"{line}\n" in text
    text = describe_file(saved(network(keras, last="sigmoid"), tmp_path / "other.keras"))
    assert "kind: sigmoid\n" in text


def test_another_backend_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "jax"))
    monkeypatch.setitem(sys.modules, "keras", other)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = "{}"
    refused(tmp_path / "m.h5", "imported with the backend jax, and torch is needed. Set KERAS_BACKEND=torch", where="")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_is_not_run(suffix: str, keras: Any, tmp_path: Path) -> None:
    marker = str(tmp_path / "written")
    code = keras.layers.Lambda(lambda x: x if x.device.type == "meta" else (open(marker, "w").close(), x)[1])
    path = saved(network(keras, code), tmp_path / f"m{suffix}")
    Path(marker).unlink(missing_ok=True)
    refused(path, r"Lambda\): it can run its maker's code when it is loaded. Give --trust-code")
    assert not Path(marker).exists()
    assert run("audit", path, "--init", expect=2).stderr.count("\n") == 1
    assert loaded(path, trust_code=True).model is not None
    assert Path(marker).exists(), "trusted, its code runs"


@pytest.mark.slow
def test_layers_of_others_that_read_files_or_claim_more_weights_than_there_are(keras: Any, tmp_path: Path) -> None:
    for name, module, layer in [
        ("Attention2D", "theirs", {}),
        ("TextVectorization", "keras.layers", {"vocabulary": "/etc/passwd"}),
        ("deserialize", "keras.layers", {}),
        ("Popen", "subprocess", {"args": "true"}),
    ]:
        path = saved(network(keras), tmp_path / "m.h5")
        entry = {"class_name": name, "module": module, "config": layer}
        rewritten(path, lambda config, entry=entry: config["config"]["layers"].append(entry))  # type: ignore[misc]
        refused(path, f"its layer {name} is not one of Keras's own for images")
    path = saved(network(keras), tmp_path / "m.h5")
    rewritten(path, lambda config: config["config"]["layers"][-1]["config"].update(units=10**10))
    refused(path, r"its layers claim \d{11} weights where the file has")


def archive(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


def test_an_archive_with_a_path_outside_or_that_fills_memory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / "m.keras", {"../out": b"x"})
    refused(path, r"it holds '../out', not only config.json, model.weights.h5, metadata.json. Nothing was extracted")
    assert not (tmp_path / "out").exists()
    archive(path, {"config.json": b" " * 50_000_000}, zipfile.ZIP_DEFLATED)
    refused(path, "'config.json' claims 50000000 bytes where the file has")


def test_a_file_that_claims_five_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("model_weights/a", shape=(1250, 1000, 1000), chunks=(1, 1000, 1000), dtype="f4")
        file.attrs["model_config"] = "{}"
    refused(path, "'/model_weights/a' claims 5000000000 bytes where the file has")
    archive(tmp_path / "m.keras", {"config.json": b"{}", "model.weights.h5": path.read_bytes()})
    refused(tmp_path / "m.keras", "claims 5000000000 bytes where the file has")


def test_weights_in_other_files_and_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    path = tmp_path / "m.h5"
    for link in (h5py.ExternalLink("secret", "/a"), h5py.SoftLink("/elsewhere")):
        with h5py.File(path, "w") as file:
            file["link"] = link
        refused(path, "'link' lies elsewhere")
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (16,), "f4", external=[(str(tmp_path / "secret"), 0, 64)])
    refused(path, "'a' lies elsewhere")
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(3)
        file["again"] = file["/"]  # a group inside itself
    refused(path, "weights alone. Save the whole model")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_cut_short(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a"] = np.zeros(1000)
    if suffix == ".keras":
        archive(path, {"config.json": b"{}", "model.weights.h5": (tmp_path / "m.h5").read_bytes()})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "not readable as a Keras")
