"""Define the documents on disk and of commands as types, and read them."""

from trustcxr.storage.schemas.audit_document import *
from trustcxr.storage.schemas.command_output import *
from trustcxr.storage.schemas.document import *
from trustcxr.storage.schemas.run_document import *
from trustcxr.storage.schemas.study_document import *
from trustcxr.storage.schemas.zoo_entry import *
