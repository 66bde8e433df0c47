"""What this is: its version, and what must stand on everything that people look at."""

__version__ = "0.2.0"
NOTICE = "Research software. Not for diagnosis."
