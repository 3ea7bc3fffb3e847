"""Put today's handler and page around the model of an archive, in seconds and without PyTorch."""

import sys
from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.arguments import Parser
from visionserve_tools.errors import told


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve repack",
        description=__doc__,
        example="visionserve repack mountains --profile server",
    )
    parser.add_argument("name", help="an archive of the store, without .mar")
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--store", type=Path, help="where it lies (model_store/PROFILE)")
    args = parser.parse_args()
    from visionserve_tools.archive.hashes import HashError
    from visionserve_tools.archive.manifest import ArchiveError
    from visionserve_tools.archive.repack import repack
    from visionserve_tools.archive.store import find

    try:
        archive = find(args.name, args.store or paths.MODEL_STORE / args.profile)
        replaced = repack(archive)
    except (ArchiveError, HashError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    if replaced:
        print(f"{archive}: {len(replaced)} files of its handler are today's now.")
    else:
        print(f"{archive}: its handler is today's already.")
    return 0
