"""`python -m primecli`."""

from primecli.cli import main

main()
