"""`python -m sinklens.cli` is `sinklens`."""

from sinklens.cli.start import main

if __name__ == "__main__":
    main()
