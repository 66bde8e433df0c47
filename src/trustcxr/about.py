"""What this is: its version, and what must stand on everything that people look at."""

__version__ = "0.1.0"
NOTICE = "Research software. Not for diagnosis."
