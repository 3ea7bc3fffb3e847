"""Compare the accuracy and confidence of runtimes, precisions and TTA modes on photographs."""

import argparse
import sys
from pathlib import Path

from scripts import paths
from scripts.archive.weights import FALLBACK
from scripts.quality.variants import MODES, VARIANTS


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="visionserve evaluate", description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=paths.SAMPLES,
        help="photographs named or foldered by class index (%(default)s)",
    )
    parser.add_argument("--model", default=FALLBACK, help="one that can be built (%(default)s)")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    parser.add_argument(
        "--enlarge", type=int, metavar="SIDE", help="photographs with a shorter side than this"
    )
    parser.add_argument("--quick", action="store_true", help="a hundred of the photographs")
    parser.add_argument("--output", type=Path, default=paths.MODEL_STORE, help="a folder")
    args = parser.parse_args()
    from scripts.quality import evaluate

    return evaluate.run(args)


if __name__ == "__main__":
    sys.exit(main())
