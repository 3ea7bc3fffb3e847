"""Measure this service and its peers side by side, in rounds; `make bench`."""

import sys
from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.arguments import Parser, whole

ROUNDS, SECONDS = 3, 3


def main() -> int:
    """Run the command."""
    parser = Parser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=whole(1, 1000), help=f"{ROUNDS}, or 1 if quick")
    parser.add_argument(
        "--seconds", type=whole(1, 3600), help=f"a load's time: {SECONDS}, or 1 if quick"
    )
    parser.add_argument("--quick", action="store_true", help="once, in five minutes")
    parser.add_argument(
        "--images", type=Path, help=f"a folder of photographs ({paths.PHOTOGRAPHS})"
    )
    parser.add_argument("--profile", action="store_true", help="draw bench-profile.svg as well")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else ROUNDS)
    args.seconds = args.seconds or (1 if args.quick else SECONDS)
    from tests.bench import run

    return run.run(args)


if __name__ == "__main__":
    sys.exit(main())
