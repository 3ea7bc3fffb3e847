"""Start or stop a profile's server, or show which servers run."""

import argparse
from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.archive.weights import MIRROR_HELP
from visionserve_tools.arguments import Parser

GROUPS_HELP = (
    "serve groups of the models' classes: a file of visionserve build, or a name in config/groups"
)


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve serve",
        description=__doc__,
        example="visionserve serve start --profile server --models resnet18",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser(
        "start",
        aliases=["restore"],
        help="build what is missing, start the server and ask it",
        example="visionserve serve start --models resnet18 mountains",
    )
    stop = commands.add_parser(
        "stop", help="stop it", example="visionserve serve stop --profile server"
    )
    commands.add_parser(
        "status",
        help="tell of each profile what runs, where and with what",
        example="visionserve serve status",
    )
    for command in (start, stop):
        command.add_argument("--profile", default="local", choices=paths.profiles())
    models = start.add_mutually_exclusive_group()
    models.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME",
        help="models that can be built, and archives of the store without .mar (what was served "
        "last: versions, defaults, workers)",
    )
    start.add_argument("--groups", metavar="FILE.json|NAME", help=GROUPS_HELP)
    models.add_argument("--archive", type=Path, help="one that was built elsewhere")
    start.add_argument("--mirror", metavar="URL", help=MIRROR_HELP)
    start.add_argument(
        *("--set", "-s"),
        action="append",
        type=pair,
        default=[],
        metavar="KEY=VALUE",
        help="a property in place of the profile's, for this start",
    )
    start.add_argument(
        "--allow-unrecorded",
        action="store_true",
        default=None,
        help="take archives that were not built here, in a profile other than local too",
    )
    args = parser.parse_args()
    from visionserve_tools.server import serve

    return serve.run(args)


def pair(text: str) -> tuple[str, str]:
    """Split `KEY=VALUE`.

    Raises:
        argparse.ArgumentTypeError: the text has no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: give KEY=VALUE.")
    return key, value
