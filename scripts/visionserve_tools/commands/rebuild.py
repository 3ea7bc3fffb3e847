"""Make an archive again from the recipe in its record, with today's builder and handler."""

from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.archive import arguments
from visionserve_tools.archive.weights import MIRROR_HELP
from visionserve_tools.arguments import Parser


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve rebuild",
        description=__doc__,
        example="visionserve rebuild mountains --profile server",
    )
    parser.add_argument("name", help="an archive of the store, without .mar")
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--store", type=Path, help="where it lies (model_store/PROFILE)")
    parser.add_argument(
        "--changed", action="store_true", help="build it though files of the recipe have changed"
    )
    parser.add_argument("--mirror", metavar="URL", help=MIRROR_HELP)
    parser.add_argument("--force", action="store_true", help=arguments.FORCE_HELP)
    args = parser.parse_args()

    def make() -> Path:
        from visionserve_tools.archive.rebuild import rebuild
        from visionserve_tools.archive.store import find

        found = find(args.name, args.store or paths.MODEL_STORE / args.profile)
        return rebuild(found, args.changed, args.mirror, args.force)

    return arguments.end(make)
