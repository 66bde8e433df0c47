"""Load external models of any format as modules from pixel space to logits.

`load` opens a model file, a model's own file, a function, a module or a table of scores. `describe_file` drafts a model
file. Nothing is unpickled, and no code of a file's maker runs unless it is trusted.
"""

from trustcxr.audit.formats.init_model_file import describe_file
from trustcxr.audit.formats.loading import ExternalModel, Origin, load
from trustcxr.audit.formats.model_file import InputSpec, ModelFile, OutputSpec, Reported, read_model_file
from trustcxr.audit.formats.wrapper import WrappedModel
