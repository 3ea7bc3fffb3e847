"""Measure the accuracy and processor time of each TTA mode on corrupted photographs."""

import argparse
import sys
from pathlib import Path

from scripts import paths
from scripts.archive.weights import FALLBACK
from scripts.quality.variants import MODES, VARIANTS


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="visionserve robustness", description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=paths.SAMPLES,
        help="photographs named or foldered by class index (%(default)s)",
    )
    parser.add_argument("--model", default=FALLBACK, help="one that can be built (%(default)s)")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--variant", default="openvino fp32", choices=VARIANTS)
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    parser.add_argument("--photographs", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a quarter of the corruptions to each")
    parser.add_argument("--output", type=Path, default=paths.MODEL_STORE, help="a folder")
    args = parser.parse_args()
    from scripts.quality import robustness

    return robustness.run(args)


if __name__ == "__main__":
    sys.exit(main())
