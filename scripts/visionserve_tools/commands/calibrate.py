"""Fit a temperature and a threshold of unfamiliar pictures for each TTA mode on photographs.

The archive is written again with what was fitted, and so is its record; whoever serves it next
serves it. It is also written to a file, for `build --temperatures`.

It also fits the probability below which a name is not worth showing, which answers then count by.
Of a multi-label archive, it fits each label's threshold for the best F1 instead; its photographs
are a CSV with the columns path and labels, separated by ; or |, or a column of 1 and 0 for each.

Use photographs that resemble what clients send and that the model was not trained on. It is more
confident on its training photographs, and temperatures that are fitted on them would leave it
overconfident on all others.
"""

from pathlib import Path

from visionserve_tools.archive.weights import FALLBACK
from visionserve_tools.arguments import Parser, real
from visionserve_tools.quality import arguments
from visionserve_tools.quality.variants import MODES


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve calibrate",
        description=__doc__,
        example="visionserve calibrate photographs/ --archive model_store/local/mountains.mar",
    )
    parser.add_argument("folder", type=Path, help=arguments.SOURCE)
    arguments.labelled(parser)
    parser.add_argument("--archive", type=Path, metavar="FILE.mar", help="put them into this one")
    arguments.named(parser, "local")
    parser.add_argument(
        "--false-alarms",
        type=real(0.001, 0.5),
        default=0.05,
        metavar="SHARE",
        help="of photographs that may be called unfamiliar (%(default)s)",
    )
    parser.add_argument(
        "--unfamiliar",
        type=Path,
        metavar="FOLDER",
        help="pictures of none of the classes, to choose the method by (made by the command)",
    )
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--output", type=Path, help="a file (NAME-temperatures.json)")
    args = parser.parse_args()
    arguments.refuse_both(parser, args, ("model", "profile"))
    if not arguments.ready(args.folder, "build"):
        return 1
    args.model, args.profile = args.model or FALLBACK, args.profile or "local"
    from visionserve_tools.quality import calibrate

    return calibrate.run(args)
