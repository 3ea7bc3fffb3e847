"""What commands share that make weights or archives: arguments, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from visionserve.metadata import LONGEST
from visionserve_tools.arguments import real, whole
from visionserve_tools.errors import told

if TYPE_CHECKING:
    from visionserve_tools.archive.declared import Declared

FORCE_HELP = "convert the model anew, whatever is there already"


def end(make: Callable[[], Path]) -> int:
    """Make an archive and print its path and size, or in one line why it cannot be made.

    Returns:
        The command's exit code.
    """
    from visionserve_tools.archive.hashes import HashError
    from visionserve_tools.archive.manifest import ArchiveError
    from visionserve_tools.archive.weights import WeightsError
    from visionserve_tools.environment import InstallError

    try:
        archive = make()
        print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    except (ArchiveError, HashError, WeightsError, InstallError, ValueError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    return 0


def preprocessing(parser: argparse.ArgumentParser, undeclared: str) -> None:
    """Add the options of `build` and `train`, which `declared` reads.

    Args:
        parser: gets them, in a group of their own.
        undeclared: says what is taken where nothing is declared.
    """
    group = parser.add_argument_group(
        "preprocessing", f"what every picture goes through before the network ({undeclared})"
    )
    group.add_argument(
        "--preset",
        default="",
        metavar="NAME|FILE.json",
        help="imagenet or half (mean and std alone), torchvision's weights "
        "(ResNet50_Weights.IMAGENET1K_V1), or timm's or Hugging Face's file; options override it",
    )
    group.add_argument("--resize", type=size, help="256 (shorter side), or 224x224 (squashed)")
    group.add_argument("--crop", type=whole(1, LONGEST), help="side of the centre crop, in pixels")
    group.add_argument("--interpolation", choices=("bilinear", "bicubic"))
    group.add_argument(
        "--mean", type=real(0, 255), nargs="+", help="one for all channels, or one each"
    )
    group.add_argument("--std", type=real(1e-6, 1e6), nargs="+", help="the same")
    group.add_argument("--range", choices=("0-1", "0-255"), help="the scale of mean and std")
    group.add_argument("--channels", choices=("rgb", "bgr", "grey"))


def declared(args: argparse.Namespace) -> Declared:
    """Return what the options declare."""
    from visionserve_tools.archive.declared import Declared

    return Declared(
        preset=args.preset,
        resize=args.resize,
        crop=args.crop,
        interpolation=args.interpolation,
        mean=args.mean and tuple(args.mean),
        std=args.std and tuple(args.std),
        range=args.range,
        channels=args.channels,
    )


def size(text: str) -> int | tuple[int, int]:
    """Parse a length in pixels, or a height and width.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    sides = [whole(1, LONGEST)(side) for side in text.split("x", 1)]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
