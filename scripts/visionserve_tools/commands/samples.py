"""List, export or remove the pictures that a server kept with their answers (handler.samples)."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.arguments import Parser

REASONS = ("share", "uncertain", "unfamiliar", "reported")


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve samples",
        description=__doc__,
        example="visionserve samples export labelled --since 7d",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, example, help_ in (
        (
            "list",
            "--since 7d --only uncertain",
            "name each sample, why it was kept, its answer and its report",
        ),
        (
            "export",
            "labelled --only reported",
            "copy them into class folders, with index.csv and Label Studio's import",
        ),
        ("clear", "--profile server", "remove all of them"),
    ):
        called = f"visionserve samples {name} {example}"
        command = commands.add_parser(name, help=help_, example=called)
        if name == "export":
            command.add_argument("folder", type=Path, help="a new folder")
        command.add_argument("--profile", default="local", choices=paths.profiles())
        command.add_argument(
            "--directory", type=Path, help="the samples' folder (what the profile says)"
        )
        if name != "clear":
            command.add_argument(
                "--since", type=_since, help="a date, UTC, or a number of days: 7d"
            )
            command.add_argument("--only", choices=REASONS, help="those that were kept for it")
            command.add_argument("--model", help="(all)")
    args = parser.parse_args()
    from visionserve_tools.server import samples

    return samples.run(args)


def _since(text: str) -> datetime:
    """Return the time that a user names."""
    if re.fullmatch(r"[0-9]{1,4}d", text):
        return datetime.now(UTC) - timedelta(days=int(text[:-1]))
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:20]}: give a date, such as 2026-11-30 or 2026-11-30T12:00, or 7d"
        ) from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)
