"""`python -m trustcxr` is the command `trustcxr`."""

from trustcxr.cli import main

main()
