"""Train a model on your own class folders, for `build --weights`.

By default the network stays as it is, and only a new last layer is fitted, in seconds to minutes on
a CPU. A fifth of the photographs is held out, to tell what the result is worth.
"""

import sys
from pathlib import Path

from visionserve_tools.archive import arguments
from visionserve_tools.archive.weights import MIRROR_HELP
from visionserve_tools.arguments import Parser, real, whole


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve train",
        description=__doc__,
        example="visionserve train pictures/ --architecture efficientnet_lite0",
    )
    parser.add_argument("folder", type=Path, help="a folder of photographs for each class in it")
    parser.add_argument("--architecture", default="resnet18", help="the network (%(default)s)")
    parser.add_argument("--weights", type=Path, help="a state dict of your own to begin with")
    parser.add_argument("--mirror", metavar="URL", help=MIRROR_HELP)
    parser.add_argument("--output", type=Path, help="a folder (model_store/trained/NAME)")
    parser.add_argument("--overwrite", action="store_true", help="begin the output anew")
    parser.add_argument("--name", help="of the model in the server (the folder's)")
    parser.add_argument("--augment", action="store_true", help="for damaged photographs")
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="of all that is random (%(default)s)"
    )
    arguments.preprocessing(parser, "that of the weights, which `build` then takes from the report")
    tuning = parser.add_argument_group("all layers, on a GPU or a patient CPU")
    tuning.add_argument("--fine-tune", action="store_true", help="train all layers")
    tuning.add_argument("--epochs", type=whole(1, 10_000), help="at most (30)")
    tuning.add_argument("--batch", type=whole(1, 10_000), help="photographs in a step (32)")
    tuning.add_argument("--learning-rate", type=real(1e-8, 1), help="the highest (0.01)")
    args = parser.parse_args()
    for option in ("epochs", "batch", "learning_rate"):
        if getattr(args, option) is not None and not args.fine_tune:
            parser.error(f"--{option.replace('_', '-')} goes with --fine-tune")
    args.epochs, args.batch = args.epochs or 30, args.batch or 32
    args.learning_rate = args.learning_rate or 0.01
    if not args.folder.exists():  # Before packages of gigabytes are fetched in vain.
        print(f"{args.folder}: no such file or directory.", file=sys.stderr)
        return 1
    from visionserve_tools import environment

    try:
        environment.require("build", "Training takes PyTorch and scikit-learn")
        from visionserve_tools.training import run

        return run.run(args)
    except environment.InstallError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        how = "goes on after its last whole epoch" if args.fine_tune else "begins again"
        print(f"Interrupted; the same command {how}.", file=sys.stderr)
        return 130
