"""Load a server for long, or far beyond its capacity, and watch its memory and open files."""

import sys

from scripts.arguments import Parser, real


def main() -> int:
    """Run the command."""
    parser = Parser(prog="visionserve soak", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    steady = commands.add_parser("steady", help="four clients, for long")
    steady.add_argument("--minutes", type=real(0.01, 1e5), default=30)
    steady.add_argument(
        "--interval", type=real(0.1, 3600), default=10, help="seconds between two readings"
    )
    above = commands.add_parser("overload", help="far more than the server can do")
    above.add_argument("--times", type=real(0.1, 1000), default=5, help="multiple of the capacity")
    above.add_argument("--seconds", type=real(1, 1e6), default=120)
    args = parser.parse_args()
    from scripts.stress.overload import overload
    from scripts.stress.soak import soak

    if args.command == "steady":
        met = soak(args.minutes, args.interval)
    else:
        met = overload(args.times, args.seconds)
    if not met:
        print("Missed a target.", file=sys.stderr)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
