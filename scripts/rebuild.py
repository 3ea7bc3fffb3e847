"""Build an archive again from the recipe in its record, with today's handler."""

import sys
from pathlib import Path

from scripts import paths
from scripts.archive.weights import MIRROR_HELP, WeightsError
from scripts.arguments import Parser


def main() -> int:
    """Run the command."""
    parser = Parser(prog="visionserve rebuild", description=__doc__)
    parser.add_argument("name", help="an archive of the store, without .mar")
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--store", type=Path, help="where it lies (model_store/PROFILE)")
    parser.add_argument(
        "--changed", action="store_true", help="build it though files of the recipe have changed"
    )
    parser.add_argument("--mirror", metavar="URL", help=MIRROR_HELP)
    args = parser.parse_args()
    from scripts.archive.hashes import HashError
    from scripts.archive.manifest import ArchiveError
    from scripts.archive.rebuild import rebuild
    from scripts.archive.store import find
    from scripts.environment import InstallError

    try:
        found = find(args.name, args.store or paths.MODEL_STORE / args.profile)
        archive = rebuild(found, args.changed, args.mirror)
    except (ArchiveError, HashError, WeightsError, InstallError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
