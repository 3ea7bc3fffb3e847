"""Break a server in each known way under load, and count lost, wrong and late responses."""

import sys

from scripts.arguments import Parser


def main() -> int:
    """Run the command."""
    parser = Parser(prog="visionserve chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="a function of its name (all)")
    args = parser.parse_args()
    from scripts.stress import chaos

    return chaos.run(args)


if __name__ == "__main__":
    sys.exit(main())
