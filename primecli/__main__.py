"""`python -m primecli`."""

from primecli.cli import main

if __name__ == "__main__":
    main()
