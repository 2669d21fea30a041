"""`python -m sinklens.cli` is `sinklens`."""

from sinklens.cli.program import main

if __name__ == "__main__":
    main()
