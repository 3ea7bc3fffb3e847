"""Compare the accuracy and confidence of runtimes, precisions and TTA modes on photographs."""

import argparse
import sys

from scripts.arguments import whole
from scripts.quality import arguments
from scripts.quality.variants import VARIANTS


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="visionserve evaluate", description=__doc__, parents=[arguments.common()]
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument(
        "--enlarge",
        type=whole(1, 5000),
        metavar="SIDE",
        help="photographs with a shorter side than this",
    )
    parser.add_argument("--quick", action="store_true", help="a hundred of the photographs")
    args = parser.parse_args()
    from scripts.quality import evaluate

    return evaluate.run(args)


if __name__ == "__main__":
    sys.exit(main())
