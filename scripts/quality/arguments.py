"""The arguments of commands that measure a model on labelled photographs."""

import argparse
from pathlib import Path

from scripts import paths
from scripts.archive.weights import FALLBACK
from scripts.quality.variants import MODES


def common() -> argparse.ArgumentParser:
    """Return a parent for the parsers of `evaluate` and `robustness`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=paths.SAMPLES,
        help="photographs named or foldered by class index (%(default)s)",
    )
    parser.add_argument("--model", default=FALLBACK, help="one that can be built (%(default)s)")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    parser.add_argument("--output", type=Path, default=paths.MODEL_STORE, help="a folder")
    return parser
