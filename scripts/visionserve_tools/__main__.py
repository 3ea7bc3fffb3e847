"""The command line: `visionserve COMMAND …`, or `python -m visionserve_tools COMMAND …`."""

import sys


def main() -> int:
    """Run the command that the first argument names; Ctrl-C ends it with a line.

    All that takes time to import is imported in here, as Ctrl-C may come before a command begins.
    """
    try:
        from visionserve_tools.command_line import run

        return run()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    finally:
        if sys.stdout is not None:  # As where the shell has closed it.
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
