"""Check Keras files, and load them as torch modules by Keras 3 on its torch backend."""

import io
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trustcxr.audit.formats.outputs import check_trusted, import_extra, refuse
from trustcxr.errors import UserError

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_RECORDS = (_CONFIG, _WEIGHTS, "metadata.json")
_EXPANSION = 20  # largest size of a file's content, in units of the file: trained weights hardly compress
_CODE = {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
_READERS = {"StringLookup", "IntegerLookup", "TextVectorization"}  # layers that read other files
_VALUES = {"__tensor__", "__numpy__", "__keras_tensor__", "__slice__", "__ellipsis__", "TensorShape"}
_WITHOUT_GROUPS = {"DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"}  # Keras 2 writes groups, Keras 3 has none
_KINDS = {"softmax": "probabilities", "sigmoid": "sigmoid", "linear": "logits"}


class KerasNet(nn.Module):
    """A Keras model: images (B, C, H, W) of `size` and `channels` (None for any) -> first output, with gradients."""

    def __init__(self, path: Path, *, trust_code: bool = False) -> None:
        super().__init__()
        self.model = _load_model(path, trust_code)
        self.device_scope = _import_keras().device
        self.outputs, self.notes = len(self.model.outputs), ()
        if len(self.model.inputs) != 1 or len(self.model.inputs[0].shape) != 4:
            raise UserError(f"{path}: it takes {len(self.model.inputs)} inputs. One is needed, the images")
        _, *sides = self.model.inputs[0].shape
        self.channels_last = sides[2] in (1, 3) or sides[0] not in (1, 3)
        height, width, self.channels = sides if self.channels_last else (*sides[1:], sides[0])
        self.size = height if height == width else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the first output."""
        with self.device_scope(str(images.device)):
            output = self.model(images.permute(0, 2, 3, 1) if self.channels_last else images, training=False)
        return output[0] if isinstance(output, list | tuple) else output

    @property
    def kind(self) -> str | None:
        """Return the kind of output that the last activation makes; None if that is not known."""
        layer = list(_layers(self.model))[-1]
        name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__.lower())
        return _KINDS.get(name)

    @property
    def range(self) -> tuple[float, float] | None:
        """Return the values of black and white that a Rescaling layer turns to 0 (or -1) and 1; None without one."""
        for layer in _layers(self.model):
            scale, offset = getattr(layer, "scale", None), getattr(layer, "offset", 0.0)
            if type(layer).__name__ == "Rescaling" and isinstance(scale, float) and isinstance(offset, float | int):
                black, white = ((target - offset) / scale for target in (-1.0 if offset < 0 else 0.0, 1.0))
                return round(black, 3), round(white, 3)
        return None


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from _layers(layer) if getattr(layer, "layers", None) else (layer,)


def _import_keras() -> Any:
    """Import Keras 3 on its torch backend; UserError if it is missing or has another backend."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"
    keras = import_extra("keras", "Keras", "keras")
    if (backend := keras.backend.backend()) != "torch":
        raise UserError(f"keras: imported with the backend {backend}, and torch is needed. Set KERAS_BACKEND=torch")
    return keras


def _load_model(path: Path, trust_code: bool) -> Any:
    config, numbers = _read_file(path)
    keras = _import_keras()
    with refuse(f"{path}: Keras does not take it"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_config(config, path, keras, trust_code)
        with keras.device("meta"):  # without memory: a layer may claim any size
            claimed = _build(config, trust_code).count_params()
        if claimed > numbers:
            raise UserError(f"{path}: its layers claim {claimed} weights where the file has {numbers}")
        with keras.device("cpu"):
            model = _build(config, trust_code)
            model.load_weights(str(path))
    if not getattr(model, "inputs", None):
        raise UserError(f"{path}: it does not tell the shape of its images. Save it after it was built")
    return model


def _build(config: dict[str, Any], trust_code: bool) -> Any:
    """Build a model from its configuration, with new weights."""
    from keras.src.legacy.saving.saving_utils import model_from_config
    from keras.src.saving.serialization_lib import SafeModeScope, deserialize_keras_object

    config = deepcopy(config)  # Keras changes it
    with SafeModeScope(not trust_code):
        return deserialize_keras_object(config) if "module" in config else model_from_config(config)


def _read_file(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's configuration and number of weights, extracting nothing; UserError if damaged or unsafe."""
    with refuse(f"{path}: not readable as a Keras file"):
        config, numbers = _read_archive(path) if path.suffix == ".keras" else _read_hdf5(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: its configuration is not that of a model")
    config.pop("compile_config", None)  # losses and metrics serve training
    return config, numbers


def _read_archive(path: Path) -> tuple[Any, int]:
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.filename not in _RECORDS:
                name = ascii(record.filename)[1:-1]
                raise UserError(f"{path}: it holds '{name}', not only {', '.join(_RECORDS)}. Nothing was extracted")
            _check_size(path, record.filename, record.file_size, path.stat().st_size)
        config, weights = json.loads(archive.read(_CONFIG)), archive.read(_WEIGHTS)
    with import_extra("h5py", "Keras", "keras").File(io.BytesIO(weights), "r") as file:
        return config, _count_numbers(file, path, len(weights))


def _read_hdf5(path: Path) -> tuple[Any, int]:
    """Read a file as Keras 2 writes it, and change its configuration to what Keras 3 reads."""
    size = path.stat().st_size
    with import_extra("h5py", "Keras", "keras").File(path, "r") as file:
        numbers = _count_numbers(file, path, size)
        if "model_config" not in file.attrs:
            raise UserError(f"{path}: weights alone. Save the whole model: model.save('model.keras')")
        _check_size(path, "model_config", file.attrs.get_id("model_config").get_storage_size(), size)
        config = json.loads(file.attrs["model_config"])
    for entry in _entries(config):
        if entry.get("class_name") in _WITHOUT_GROUPS and isinstance(entry.get("config"), dict):
            entry["config"].pop("groups", None)
        for key in ("input_layers", "output_layers"):  # one tensor, rather than a list of one
            if isinstance(entry.get(key), list) and len(entry[key]) == 1:
                entry[key] = entry[key][0]
    return config, numbers


def _entries(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the tables of a configuration, outer ones first."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _entries(part)


def _count_numbers(file: Any, path: Path, size: int) -> int:
    """Count the numbers in an HDF5 file of `size` bytes; UserError if they lie elsewhere, or claim far more memory."""
    h5py, numbers, claimed = import_extra("h5py", "Keras", "keras"), 0, 0
    links: list[tuple[str, Any]] = []
    file.visititems_links(lambda name, link: links.append((name, link)))
    for name, link in links:
        part = file[name] if isinstance(link, h5py.HardLink) else None
        if part is None or (isinstance(part, h5py.Dataset) and (part.external or part.is_virtual)):
            raise UserError(f"{path}: '{ascii(name)[1:-1]}' lies elsewhere, perhaps in another file")
        if isinstance(part, h5py.Dataset):
            numbers, claimed = numbers + part.size, claimed + part.nbytes
            _check_size(path, part.name, claimed, size)
    return numbers


def _check_size(path: Path, name: str, claimed: int, size: int) -> None:
    if claimed > _EXPANSION * size:
        raise UserError(f"{path}: '{ascii(name)[1:-1]}' claims {claimed} bytes where the file has {size}")


def _check_config(config: Any, path: Path, keras: Any, trust_code: bool) -> None:
    """Raise UserError for a layer that is code, that reads files, or that is not Keras's own."""
    for entry in _entries(config):
        name, module = entry.get("class_name"), entry.get("module") or "keras"
        shown = ascii(name).strip("'")[:60]
        if name in _CODE:
            check_trusted(f"{path} (its layer {shown})", trust_code)
        elif name is not None and name not in _VALUES and not _is_own(entry, name, str(module), keras):
            raise UserError(
                f"{path}: its layer {shown} is not one of Keras's own for images. Build the model in Python, and "
                "write python: module:function in the model file"
            )


def _is_own(entry: dict[str, Any], name: Any, module: str, keras: Any) -> bool:
    """Return whether a class of a configuration is one of Keras's layers, operations, initialisers or the like."""
    if not isinstance(name, str) or name in _READERS or module.partition(".")[0] not in ("keras", "builtins"):
        return False
    if name == "function":
        name = entry.get("config")
        return isinstance(name, str) and callable(getattr(keras.activations, name, None))
    if module.startswith("keras.src.ops."):
        layer_class = getattr(sys.modules.get(module), name, None)
        return isinstance(layer_class, type) and issubclass(layer_class, keras.Operation)
    places = [keras, keras.src.models, keras.layers, keras.initializers, keras.regularizers]
    places += [keras.constraints, keras.dtype_policies]
    return any(isinstance(getattr(place, name, None), type) for place in places)
