"""Measure an archive on labelled photographs, or compare runtimes, precisions and TTA modes.

With --archive: Top-1 with its interval, precision and recall of each class, the confusion matrix
(PNG and CSV) and the most confidently wrong photographs (HTML), in the views that the archive
serves by default; of a multi-label archive, mAP, F1 and the figures of each label. Without, the
ways in which a model that can be built may be served.
"""

from pathlib import Path

from visionserve_tools.archive.weights import FALLBACK
from visionserve_tools.arguments import Parser, whole
from visionserve_tools.quality import arguments
from visionserve_tools.quality.variants import MODES, VARIANTS


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve evaluate",
        description=__doc__,
        example="visionserve evaluate photographs/ --archive model_store/local/mountains.mar",
        parents=[arguments.common()],
    )
    parser.add_argument("--model", help=f"or one that can be built ({FALLBACK})")
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="of --model (all)")
    parser.add_argument(
        "--enlarge",
        type=whole(1, 5000),
        metavar="SIDE",
        help="photographs with a shorter side than this",
    )
    parser.add_argument("--quick", action="store_true", help="a hundred of the photographs")
    args = parser.parse_args()
    arguments.refuse_both(parser, args, ("model", "variants", "calibration", "enlarge"))
    if not arguments.ready(args.folder, "build", "charts"):
        return 1
    if args.archive:
        from visionserve_tools.quality import served

        return served.run(args)
    args.model, args.modes = args.model or FALLBACK, args.modes or MODES
    args.variants = args.variants or list(VARIANTS)
    from visionserve_tools.quality import evaluate

    return evaluate.run(args)
