"""Write config/openapi.json, which nginx shows at /openapi.json, anew from the code."""

import sys

from scripts.arguments import Parser


def main() -> int:
    """Run the command."""
    Parser(prog="visionserve openapi", description=__doc__).parse_args()
    from scripts import lock
    from scripts.server import openapi

    try:
        with lock.replace(openapi.FILE) as written:
            written.write(openapi.encoded().encode())
    except (lock.HeldError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{openapi.FILE} is written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
