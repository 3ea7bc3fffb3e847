"""Build a model archive (.mar) for a profile."""

from pathlib import Path
from typing import get_args

from visionserve.config import Activation, Wanted
from visionserve_tools import paths
from visionserve_tools.archive import arguments
from visionserve_tools.archive.weights import MIRROR_HELP
from visionserve_tools.arguments import Parser

WEIGHTS_HELP = (
    "a state dict or a training's checkpoint of your own, of torch.save or safetensors; no class "
    "that it names is imported"
)
LABELS_HELP = (
    "labels in class-index order: a text with one label a line, a CSV with the columns index and "
    "label, a JSON list, TorchServe's index_to_name.json, Hugging Face's config.json, or class "
    "folders in ImageFolder's order (those that visionserve train trained on, or ImageNet's)"
)
EXPECT_HELP = (
    "your own predictions, which the archive has to give: a CSV with the columns path and one for "
    "each label, or path, label and probability of the best class alone; or JSON lines with path "
    "and probabilities by label. Paths start at the file's folder"
)
GROUPS_HELP = (
    'classes that become one, {"dog": ["beagle", "152-268"], ...}; each has its members\' '
    "probabilities summed up; a file, or a name in config/groups such as everyday"
)


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve build",
        description=__doc__,
        example="visionserve build resnet18 --weights tuned.pt --labels labels.txt --name alps",
    )
    parser.add_argument("model", nargs="?", default="resnet18")
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--name", help="name in the server (the model's; MODEL-GROUPS with groups)")
    parser.add_argument("--version", default="1.0")
    parser.add_argument(
        "--file", help="the archive's file name without .mar (NAME, or NAME-VERSION after 1.0)"
    )
    parser.add_argument("--weights", type=Path, help=WEIGHTS_HELP)
    parser.add_argument("--use-ema", action="store_true", help="its averaged weights (EMA)")
    parser.add_argument("--mirror", metavar="URL", help=MIRROR_HELP)
    parser.add_argument("--labels", type=Path, help=LABELS_HELP)
    parser.add_argument(
        "--label-map",
        type=Path,
        help='names shown beside labels: {"names": {"zh": {"alp": "高山"}}}',
    )
    parser.add_argument("--groups", metavar="FILE.json|NAME", help=GROUPS_HELP)
    parser.add_argument(
        "--activation",
        default="softmax",
        choices=get_args(Activation),
        help="sigmoid: each label has a probability of its own (multi-label, or yes or no)",
    )
    parser.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help="of sigmoid: a CSV of label and threshold, or JSON (0.5 each)",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Wanted),
        help="in place of the profile's: fp32 for a machine with an ARM processor",
    )
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    parser.add_argument("--temperatures", type=Path, help="a file of visionserve calibrate")
    parser.add_argument("--expect", type=Path, metavar="FILE", help=EXPECT_HELP)
    parser.add_argument("--store", type=Path, help="where to write (model_store/PROFILE)")
    arguments.preprocessing(parser, "torchvision's for the model, or what `train` was given")
    parser.add_argument("--force", action="store_true", help=arguments.FORCE_HELP)
    args = parser.parse_args()
    if args.use_ema and not args.weights:
        parser.error("--use-ema chooses among the weights of a checkpoint: give --weights")

    def make() -> Path:
        from visionserve_tools.archive.groups import find_groups
        from visionserve_tools.archive.recipe import Recipe, build, grouped

        groups = find_groups(args.groups) if args.groups else None
        recipe = Recipe(
            architecture=args.model,
            name=args.name or grouped(args.model, groups),
            version=args.version,
            config=paths.profile(args.profile) / paths.MODEL_CONFIG,
            weights=args.weights,
            averaged=args.use_ema,
            labels=args.labels,
            label_map=args.label_map,
            calibration=args.calibration,
            temperatures=args.temperatures,
            declared=arguments.declared(args),
            expect=args.expect,
            file=args.file,
            groups=groups,
            activation=args.activation,
            thresholds=args.thresholds,
            precision=args.precision,
        )
        store = args.store or paths.MODEL_STORE / args.profile
        return build(recipe, store, args.mirror, force=args.force)

    return arguments.end(make)
