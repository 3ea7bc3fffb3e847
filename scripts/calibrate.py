"""Fit a temperature for each TTA mode on labelled photographs, and put it into an archive.

With --archive, the archive is written again with its temperatures, and so is its record; whoever
serves it next serves them. Without, they are written to a file, for `build --temperatures`.

It also fits the probability below which a name is not worth showing, which answers then count by.

Use photographs that resemble what clients send and that the model was not trained on. It is more
confident on its training photographs, and temperatures that are fitted on them would leave it
overconfident on all others.
"""

import sys
from pathlib import Path

from scripts import paths
from scripts.archive.weights import FALLBACK
from scripts.arguments import Parser
from scripts.quality import arguments
from scripts.quality.variants import MODES


def main() -> int:
    """Run the command."""
    parser = Parser(prog="visionserve calibrate", description=__doc__)
    parser.add_argument("folder", type=Path, help=arguments.SOURCE)
    arguments.labelled(parser)
    parser.add_argument("--archive", type=Path, metavar="FILE.mar", help="put them into this one")
    parser.add_argument("--model", help=f"or one that can be built ({FALLBACK})")
    parser.add_argument("--profile", choices=paths.profiles(), help="of --model (local)")
    parser.add_argument("--weights", type=Path, help="a state dict of your own")
    parser.add_argument("--labels", type=Path, help="as for visionserve build")
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--output", type=Path, help="a file (NAME-temperatures.json)")
    args = parser.parse_args()
    built = ("model", "profile", "weights", "labels", "calibration")
    arguments.refuse_both(parser, args, built)
    if not arguments.ready("build"):
        return 1
    args.model, args.profile = args.model or FALLBACK, args.profile or "local"
    from scripts.quality import calibrate

    return calibrate.run(args)


if __name__ == "__main__":
    sys.exit(main())
