"""Classify many images: write one row for each, in order, as CSV, JSON Lines or Parquet."""

from pathlib import Path
from typing import get_args

from visionserve.config import TTA, Language
from visionserve_tools import paths
from visionserve_tools.arguments import Parser, real, whole


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve classify",
        description=__doc__,
        example="visionserve classify photos/ --output rows.csv",
    )
    parser.add_argument("paths", nargs="*", help="files, folders or glob patterns")
    parser.add_argument("--list", metavar="FILE", help="a path per line; - for standard input")
    parser.add_argument(
        "--output",
        type=Path,
        help="FILE.csv, .jsonl or .parquet; one that an interrupted run left is gone on with",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="CSV_OR_FOLDER",
        help="add a column truth: a CSV of path and label, or the folder that holds class folders",
    )
    parser.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="write features, too: .npy, in the rows' order, or .parquet of path and features",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin the output anew")
    parser.add_argument(
        "--tta", choices=get_args(TTA), help="views of each image (the archive's default)"
    )
    parser.add_argument("--top-k", type=whole(1, 10_000), help="predictions per image (3 at most)")
    parser.add_argument(
        "--threshold", type=real(0, 1), help="probability of a confident answer (the archive's)"
    )
    parser.add_argument(
        "--language", choices=get_args(Language), help="name classes in it (labels)"
    )
    parser.add_argument(
        "--concurrency", type=whole(1, 1000), default=4, help="requests or actors (4)"
    )
    parser.add_argument("--engine", choices=("server", "ray"), default="server")
    server = parser.add_argument_group("the server engine")
    server.add_argument(
        "--profile",
        choices=paths.profiles(),
        help="ask the server that make serve started, with its key (local)",
    )
    server.add_argument("--server", metavar="URL", help="ask another one")
    server.add_argument("--model", help="(the only one of the profile's server)")
    server.add_argument("--key-file", type=Path, help="key_file.json of --server")
    server.add_argument(
        "--retries", type=whole(0, 1000), default=8, help="while busy or unreachable (8)"
    )
    ray = parser.add_argument_group("the ray engine")
    ray.add_argument("--archive", type=Path, help="the .mar to classify with")
    ray.add_argument("--address", help="of a running cluster (one on this machine)")
    args = parser.parse_args()
    if not args.paths and not args.list:
        parser.error("name images, or a --list of them")
    if args.engine == "ray" and not args.archive:
        parser.error("--engine ray needs --archive")
    if args.server and args.profile:
        parser.error("give --profile or --server, not both")
    if args.overwrite and not args.output:
        parser.error("--overwrite goes with --output")
    if args.features and args.output and args.features.resolve() == args.output.resolve():
        parser.error("--features and --output are two files")
    if args.server and not args.model:
        parser.error("--server needs --model")
    if args.key_file and not args.server:
        parser.error("--key-file goes with --server")
    args.profile = args.profile or "local"
    from visionserve_tools.batch import classify

    return classify.run(args)
