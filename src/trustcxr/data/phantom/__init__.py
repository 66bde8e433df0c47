"""Generate synthetic chest X-rays with known lesions and exact masks.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.data.phantom.render_image import CLASSES, SHORTCUTS, Phantom, Shortcut, parse_shortcut, render
    from trustcxr.data.phantom.write_files import SPLITS, write
else:
    __getattr__, __dir__, __all__ = attach(__name__)
