"""Models that others published: the answers of their own runtime, and the gradients of finite differences."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trustcxr as tx
from foreign_models import steepest_slopes
from trustcxr.audit.formats import load

CLASSES = ("COVID-19", "Normal", "Non-COVID")  # in any order: names change no answer
Runtime = Callable[[Path, np.ndarray, Path], np.ndarray]


def by_onnxruntime(path: Path, images: np.ndarray, _: Path) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: image[None]})[0] for image in images])


def by_keras(path: Path, images: np.ndarray, folder: Path) -> np.ndarray:
    """Let Keras load a copy whose configuration has no `groups` and no list of one tensor: Keras 3 refuses them."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    h5py, keras = pytest.importorskip("h5py"), pytest.importorskip("keras")

    def without_groups(part: dict[str, Any]) -> dict[str, Any]:
        ends = {key: part[key][0] for key in ("input_layers", "output_layers") if len(part.get(key, ())) == 1}
        return {key: value for key, value in part.items() if key != "groups"} | ends

    copy = shutil.copy(path, folder / path.name)
    with h5py.File(copy, "r+") as file:
        config = json.loads(file.attrs["model_config"], object_hook=without_groups)
        file.attrs["model_config"] = json.dumps(config)
    model = keras.models.load_model(copy, compile=False)
    return np.asarray(model.predict(images.transpose(0, 2, 3, 1), verbose=0))


FILES: dict[str, tuple[int, tuple[float, float], Any, Runtime]] = {
    "nttrung.onnx": (128, (0, 1), "logits", by_onnxruntime),
    "lian_tm.h5": (224, (-1, 1), "probabilities", by_keras),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_answers_and_gradients_are_those_of_the_file(name: str, real_data: Path, tmp_path: Path) -> None:
    path, (size, (low, high), kind, runtime) = real_data / "external-models" / name, FILES[name]
    if not path.is_file():
        pytest.skip(f"{path} is not there: set TRUSTCXR_DATA")
    external: Any = load(path, classes=CLASSES, output=kind, size=size, channels=3, range=(low, high))
    data = tx.load_dataset(real_data / "external-cxr", size=size)
    images = torch.from_numpy(np.array(data.images[::16][:20])).float() / 255
    expected = runtime(path, images.expand(-1, 3, -1, -1).numpy() * (high - low) + low, tmp_path)
    assert np.ptp(expected, axis=0).max() > 1e-2, "the answers differ between images"
    assert np.abs(external.model.answers(images).detach().numpy() - expected).max() < 1e-4

    slope, difference = steepest_slopes(external.model, images[:4], 1e-3)
    assert torch.allclose(difference, slope, rtol=0.05)
