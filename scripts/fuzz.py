"""Fuzz the code that meets a client's bytes first: request reading, validation and decoding.

libFuzzer mutates the seeds to reach new code in this project and in Pillow's plugins. The run fails
at the first exception that does not blame the client, at an input that takes over ten seconds, or
if memory grows by over 300 MB. The input is then kept as `fuzz-*` in the folder for temporary
files.
"""

import sys
from pathlib import Path

from scripts.arguments import Parser, whole


def main() -> int:
    """Run the command."""
    parser = Parser(prog="visionserve fuzz", description=__doc__)
    parser.add_argument(
        "--runs", type=whole(1, 1_000_000_000), default=20_000, help="inputs to try"
    )
    parser.add_argument("--seeds", type=Path, help="a folder of inputs to start from (the tests')")
    args = parser.parse_args()
    from scripts.stress import fuzz

    return fuzz.run(args)


if __name__ == "__main__":
    sys.exit(main())
