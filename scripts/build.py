"""Build a model archive (.mar) for a profile."""

import sys
from pathlib import Path

from scripts import paths
from scripts.archive.weights import MIRROR_HELP, WeightsError
from scripts.arguments import Parser, real, whole
from visionserve.metadata import LONGEST

PRESET_HELP = (
    "how the weights' pictures were prepared: imagenet or half (mean and std), torchvision's "
    "weights (ResNet50_Weights.IMAGENET1K_V1), timm's or Hugging Face's file; options override it"
)
GROUPS_HELP = (
    'classes that become one, {"dog": ["beagle", "152-268"], ...}; each has its members\' '
    "probabilities summed up; a file, or a name in config/groups such as everyday"
)
EXPECT_HELP = "your own predictions (.csv or .jsonl); an archive with others is not written"


def size(text: str) -> int | tuple[int, int]:
    """Parse a length in pixels, or a height and width.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    sides = [whole(1, LONGEST)(side) for side in text.split("x", 1)]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def main() -> int:
    """Run the command."""
    parser = Parser(prog="visionserve build", description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet18")
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--name", help="name in the server (the model's; MODEL-GROUPS with groups)")
    parser.add_argument("--version", default="1.0")
    parser.add_argument(
        "--file", help="the archive's file name without .mar (NAME, or NAME-VERSION after 1.0)"
    )
    parser.add_argument("--weights", type=Path, help="a checkpoint or state dict of your own")
    parser.add_argument("--use-ema", action="store_true", help="its averaged weights (EMA)")
    parser.add_argument("--mirror", metavar="URL", help=MIRROR_HELP)
    parser.add_argument(
        "--labels", type=Path, help="a text with one label a line, CSV, JSON, or class folders"
    )
    parser.add_argument(
        "--label-map",
        type=Path,
        help='names shown beside labels: {"names": {"zh": {"alp": "高山"}}}',
    )
    parser.add_argument("--groups", metavar="FILE.json|NAME", help=GROUPS_HELP)
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    parser.add_argument("--temperatures", type=Path, help="a file of visionserve calibrate")
    parser.add_argument("--preset", default="", metavar="NAME|FILE.json", help=PRESET_HELP)
    parser.add_argument("--resize", type=size, help="256 (shorter side), or 224x224 (squashed)")
    parser.add_argument("--crop", type=whole(1, LONGEST), help="side of the centre crop, in pixels")
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"))
    parser.add_argument(
        "--mean", type=real(0, 255), nargs="+", help="one for all channels, or one each"
    )
    parser.add_argument("--std", type=real(1e-6, 1e6), nargs="+", help="the same")
    parser.add_argument("--range", choices=("0-1", "0-255"), help="the scale of mean and std")
    parser.add_argument("--channels", choices=("rgb", "bgr", "grey"))
    parser.add_argument("--expect", type=Path, metavar="FILE", help=EXPECT_HELP)
    parser.add_argument("--store", type=Path, help="where to write (model_store/PROFILE)")
    args = parser.parse_args()
    if args.use_ema and not args.weights:
        parser.error("--use-ema chooses among the weights of a checkpoint: give --weights")
    from scripts.archive.declared import Declared
    from scripts.archive.groups import find_groups
    from scripts.archive.recipe import Recipe, build, grouped
    from scripts.environment import InstallError

    try:
        groups = find_groups(args.groups) if args.groups else None
        recipe = Recipe(
            architecture=args.model,
            name=args.name or grouped(args.model, groups),
            version=args.version,
            config=paths.CONFIG / args.profile / "model-config.yaml",
            weights=args.weights,
            averaged=args.use_ema,
            labels=args.labels,
            label_map=args.label_map,
            calibration=args.calibration,
            temperatures=args.temperatures,
            declared=Declared(
                preset=args.preset,
                resize=args.resize,
                crop=args.crop,
                interpolation=args.interpolation,
                mean=args.mean and tuple(args.mean),
                std=args.std and tuple(args.std),
                range=args.range,
                channels=args.channels,
            ),
            expect=args.expect,
            file=args.file,
            groups=groups,
        )
        archive = build(recipe, args.store or paths.MODEL_STORE / args.profile, args.mirror)
    except (WeightsError, InstallError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
