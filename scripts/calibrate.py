"""Fit a temperature for each TTA mode on labelled photographs, for `build --temperatures`.

Use photographs that resemble what clients send and that the model was not trained on. It is more
confident on its training photographs, and temperatures that are fitted on them would leave it
overconfident on all others.
"""

import argparse
import sys
from pathlib import Path

from scripts import paths
from scripts.archive.weights import FALLBACK
from scripts.quality.variants import MODES


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="visionserve calibrate", description=__doc__)
    parser.add_argument("folder", type=Path, help="photographs named or foldered by class index")
    parser.add_argument("--model", default=FALLBACK, help="one that can be built (%(default)s)")
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--weights", type=Path, help="a state dict of your own")
    parser.add_argument("--labels", type=Path, help="a file with one label a line")
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--output", type=Path, help="a file (model_store/MODEL-temperatures.json)")
    args = parser.parse_args()
    from scripts.quality import calibrate

    return calibrate.run(args)


if __name__ == "__main__":
    sys.exit(main())
