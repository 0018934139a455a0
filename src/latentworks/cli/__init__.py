"""The command line: one file a command group, each command a function whose signature is its help."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run `lw`. A user's mistake prints one line and exits with 2."""
    from latentworks.cli.app import app

    try:
        app()
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"lw: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"lw: not enough memory: ask for fewer or smaller images at once. {' '.join(str(error).split())}".strip(), file=sys.stderr)
        sys.exit(2)
