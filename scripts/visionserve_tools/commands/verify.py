"""Check that an archive's model computes on this machine what its weights compute in PyTorch.

It asks about the pictures that the archive holds. An archive in INT8 has no weights in FP32 to hold
your own pictures against: build it for a profile in FP32, too, and give both to `visionserve
compare`; or `visionserve evaluate --archive` where the pictures have labels, on each machine.
"""

import sys

from visionserve_tools import paths
from visionserve_tools.arguments import Parser
from visionserve_tools.errors import told


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve verify",
        description=__doc__,
        example="visionserve verify mountains --profile server",
    )
    parser.add_argument("archive", help="an archive of the store, without .mar, or a file")
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    args = parser.parse_args()
    from visionserve import runtimes, self_check
    from visionserve_tools.archive.hashes import HashError
    from visionserve_tools.archive.manifest import ArchiveError
    from visionserve_tools.archive.store import named
    from visionserve_tools.archive.unpacked import unpacked

    try:
        archive = named(args.archive, paths.MODEL_STORE / args.profile)
        with unpacked(archive) as one:
            config = one.config.handler.model_copy(update={"self_check": "refuse"})
            runtime = runtimes.load(one.directory, one.metadata, config, one.gpu_id, 1)
            checked = self_check.check(one.directory, one.metadata, config, runtime)
    except (ArchiveError, HashError, self_check.SelfCheckError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    if checked is None:
        print(
            f"{archive} has no pictures to check itself with: visionserve rebuild.", file=sys.stderr
        )
        return 1
    print(f"{archive}: {checked.about}")
    return 0
