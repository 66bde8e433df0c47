"""State the version, and the notice that every page and report shows."""

__version__ = "0.2.0"
NOTICE = "Research software. Not for diagnosis."
