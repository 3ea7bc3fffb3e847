"""Measure the accuracy and processor time of each TTA mode on corrupted photographs."""

from visionserve_tools.archive.weights import FALLBACK
from visionserve_tools.arguments import Parser, whole
from visionserve_tools.quality import arguments


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve robustness",
        description=__doc__,
        example="visionserve robustness photographs/ --archive model_store/local/mountains.mar",
        parents=[arguments.common()],
    )
    arguments.named(parser, "server")
    parser.add_argument(
        "--photographs", type=whole(1, 1_000_000), default=200, help="how many (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the corruptions to each")
    args = parser.parse_args()
    arguments.refuse_both(parser, args, ("model", "profile"))
    if not arguments.ready(args.folder, "build", "charts"):
        return 1
    args.model, args.profile = args.model or FALLBACK, args.profile or "server"
    from visionserve_tools.quality import robustness

    return robustness.run(args)
