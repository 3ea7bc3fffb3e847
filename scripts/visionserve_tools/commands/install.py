"""Install an extra of `pyproject.toml`, at the releases pinned in `config/constraints.txt`."""

import sys

from visionserve_tools import environment
from visionserve_tools.arguments import Parser


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve install", description=__doc__, example="visionserve install build"
    )
    parser.add_argument("extra", choices=environment.extras())
    args = parser.parse_args()
    try:
        environment.install(args.extra)
    except environment.InstallError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
