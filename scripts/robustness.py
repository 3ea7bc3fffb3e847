"""Measure the accuracy and processor time of each TTA mode on corrupted photographs."""

import argparse
import sys

from scripts.arguments import whole
from scripts.quality import arguments
from scripts.quality.variants import VARIANTS


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="visionserve robustness", description=__doc__, parents=[arguments.common()]
    )
    parser.add_argument("--variant", default="openvino fp32", choices=VARIANTS)
    parser.add_argument(
        "--photographs", type=whole(1, 1_000_000), default=200, help="how many (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the corruptions to each")
    args = parser.parse_args()
    from scripts.quality import robustness

    return robustness.run(args)


if __name__ == "__main__":
    sys.exit(main())
