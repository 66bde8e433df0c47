"""Generate synthetic chest X-rays with known lesions and exact masks.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.data.phantom.anatomy import CLASSES
    from trustcxr.data.phantom.render_image import Phantom, render
    from trustcxr.data.phantom.shortcuts import (
        SHORTCUTS,
        Shortcut,
        parse_shortcut,
    )
    from trustcxr.data.phantom.write_files import SPLITS, write
else:
    __getattr__, __dir__, __all__ = attach(__name__)
