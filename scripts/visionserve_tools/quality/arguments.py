"""The arguments of commands that measure a model on labelled photographs."""

import argparse
import sys
from pathlib import Path

from visionserve_tools import environment, paths
from visionserve_tools.archive.weights import FALLBACK
from visionserve_tools.arguments import Parser
from visionserve_tools.errors import told
from visionserve_tools.quality.variants import MODES

SOURCE = "class folders, FOLDER/class name/picture.jpg, or a CSV of path and label"


def labelled(parser: argparse.ArgumentParser) -> None:
    """Add how labels are read."""
    parser.add_argument(
        "--index-in-name",
        action="store_true",
        help="names of folders or files, or the CSV's labels, are class indices",
    )


def common() -> argparse.ArgumentParser:
    """Return a parent for the parsers of `evaluate` and `robustness`."""
    parser = Parser(add_help=False)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=paths.PHOTOGRAPHS,
        help=f"{SOURCE} (%(default)s)",
    )
    labelled(parser)
    parser.add_argument("--archive", type=Path, metavar="FILE.mar", help="measure this archive")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="views of each photograph")
    parser.add_argument("--output", type=Path, help="a folder (in model_store)")
    return parser


def named(parser: argparse.ArgumentParser, profile: str) -> None:
    """Add how an archive of the store is named in place of --archive, which `archive_of` reads."""
    parser.add_argument(
        "--model", help=f"or what serves by this name, which is built if need be ({FALLBACK})"
    )
    parser.add_argument("--profile", choices=paths.profiles(), help=f"of --model ({profile})")


def archive_of(args: argparse.Namespace) -> Path:
    """Return the archive that is measured, of a model that can be built after a build.

    Raises:
        ArchiveError: there is none of that name.
        WeightsError, ProofError, OSError: it cannot be built.
    """
    from visionserve_tools.archive import store

    given: Path | None = args.archive
    return given or store.obtain(args.model, args.profile, paths.MODEL_STORE / args.profile)


def ready(folder: Path, *extras: str) -> bool:
    """Install extras that are not installed; if pip fails, say so and return False.

    So is a folder that is not there, before packages of gigabytes are fetched in vain.
    """
    try:
        folder.stat()
        for extra in extras:
            environment.require(extra, "Measuring needs more packages")
    except (environment.InstallError, OSError) as error:
        print(told(error), file=sys.stderr)
        return False
    return True


def refuse_both(
    parser: argparse.ArgumentParser, args: argparse.Namespace, names: tuple[str, ...]
) -> None:
    """End the command if it has options that an archive has answered itself."""
    given = [f"--{name}" for name in names if getattr(args, name)]
    if args.archive and given:
        parser.error(f"--archive brings its own model: leave out {' '.join(given)}")
