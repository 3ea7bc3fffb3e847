"""Write config/openapi.json, which nginx shows at /openapi.json, anew from the code."""

import sys

from visionserve_tools.arguments import Parser
from visionserve_tools.errors import told


def main() -> int:
    """Run the command."""
    Parser(
        prog="visionserve openapi", description=__doc__, example="visionserve openapi"
    ).parse_args()
    from visionserve_tools import advice, lock
    from visionserve_tools.server import openapi

    advice.end_without_sources("openapi")
    try:
        with lock.replace(openapi.FILE) as written:
            written.write(openapi.encoded().encode())
    except (lock.HeldError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    print(f"{openapi.FILE} is written.")
    return 0
