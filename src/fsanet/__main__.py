"""The program `fsanet`, and `python -m fsanet`."""

import sys

from fsanet.signals import handled


def run() -> int:
    """Run the command line, whose imports a signal may interrupt, too; returns the exit code."""
    with handled(to_the_end=True):
        from fsanet.cli.main import main

        return main()


if __name__ == "__main__":
    sys.exit(run())
