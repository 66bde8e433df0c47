"""Bring your own model: any classifier, whatever made it, as a module from pixel space to logits.

`load` opens a model file, a model's own file (ONNX, weights with their timm name, .pt2, TorchScript), a function, a
module or a table of scores. `describe_file` writes the model file's first draft for one. Nothing is unpickled, and no
code of a file's maker runs unless it is trusted.
"""

from trustcxr.audit.formats.init_model_file import describe_file, drafted
from trustcxr.audit.formats.loading import ExternalModel, Origin, load
from trustcxr.audit.formats.model_file import InputSpec, ModelFile, OutputSpec, Reported, read_model_file
from trustcxr.audit.formats.wrapper import WrappedModel

__all__ = [
    "Given",
    "InputSpec",
    "ModelFile",
    "Origin",
    "OutputSpec",
    "Reported",
    "WrappedModel",
    "describe_file",
    "drafted",
    "load",
    "read_model_file",
]
