"""Measure the accuracy and processor time of each TTA mode on corrupted photographs."""

import sys

from scripts.archive.weights import FALLBACK
from scripts.arguments import Parser, whole
from scripts.quality import arguments


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve robustness", description=__doc__, parents=[arguments.common()]
    )
    arguments.named(parser, "server")
    parser.add_argument(
        "--photographs", type=whole(1, 1_000_000), default=200, help="how many (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the corruptions to each")
    args = parser.parse_args()
    arguments.refuse_both(parser, args, ("model", "profile"))
    if not arguments.ready("build", "charts"):
        return 1
    args.model, args.profile = args.model or FALLBACK, args.profile or "server"
    from scripts.quality import robustness

    return robustness.run(args)


if __name__ == "__main__":
    sys.exit(main())
