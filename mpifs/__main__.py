"""`mpifs` and `python -m mpifs`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        from mpifs.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("mpifs: interrupted\n")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
