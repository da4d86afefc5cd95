"""The one entry of the one binary: `swarmd` and `python -m swarmd` are the same.

The runner is dispatched before anything else is imported: it has to be small and quick to start.
"""

import sys


def main() -> int:
    if sys.argv[1:2] == ["runner"]:
        from swarmd.runner.main import main as run

        return run(sys.argv[2:])
    from swarmd.cli.main import main as cli

    return cli()


if __name__ == "__main__":
    sys.exit(main())
