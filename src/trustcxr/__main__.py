"""Run the command `trustcxr` as `python -m trustcxr`."""

from trustcxr.cli import main

main()
