"""Bring your own model: any classifier, whatever made it, as a module from pixel space to logits.

`load` opens a model file, a model's own file (ONNX, weights with their timm name, .pt2, TorchScript), a function, a
module or a table of scores. `describe_file` writes the model file's first draft for one. Nothing is unpickled, and no
code of a file's maker runs unless it is trusted.
"""

from trustcxr.models.adapters.adapted import Adapted
from trustcxr.models.adapters.declaration import InputSpec, ModelFile, OutputSpec, Reported, read_model_file
from trustcxr.models.adapters.draft import describe_file, drafted
from trustcxr.models.adapters.loading import Given, Origin, load

__all__ = [
    "Adapted",
    "Given",
    "InputSpec",
    "ModelFile",
    "Origin",
    "OutputSpec",
    "Reported",
    "describe_file",
    "drafted",
    "load",
    "read_model_file",
]
