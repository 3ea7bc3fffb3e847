"""Compare two archives on the same photographs, before the second one takes the first one's place.

Which answers changed, how far all probabilities moved, what each archive takes, and, where labels
are known, Top-1 of each and the difference with its interval. Each archive answers as it is packed,
in its own default views. --at-least judges the difference by its interval's lower end: what few
photographs cannot show is not taken for granted. The command then fails if the bar is not reached.
"""

from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.arguments import Parser, real
from visionserve_tools.quality import arguments


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve compare",
        description=__doc__,
        example="visionserve compare resnet18 resnet18-2.0 photographs/ --at-least -1",
    )
    for name, which in (("first", "what serves now"), ("second", "what is to take its place")):
        parser.add_argument(
            name, help=f"{which}: a file, or an archive of the profile's store by its name"
        )
    parser.add_argument("folder", type=Path, help=f"{arguments.SOURCE}; or pictures alone")
    arguments.labelled(parser)
    parser.add_argument(
        "--unlabelled", action="store_true", help="the folders' names, or the CSV's, are no labels"
    )
    parser.add_argument("--profile", default="local", choices=paths.profiles(), help="(local)")
    parser.add_argument(
        "--at-least",
        type=real(-100, 100),
        metavar="POINTS",
        help="of Top-1 that the second is from the first, such as -0.5, or the command fails",
    )
    parser.add_argument("--output", type=Path, help="a folder (in model_store)")
    args = parser.parse_args()
    if args.unlabelled and (args.index_in_name or args.at_least is not None):
        parser.error("--unlabelled leaves nothing for --index-in-name and --at-least")
    if not arguments.ready(args.folder, "build"):
        return 1
    from visionserve_tools.quality import compare

    return compare.run(args)
