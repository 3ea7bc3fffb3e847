"""Operate a running server through TorchServe's management API."""

import argparse
from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.arguments import Parser, whole

WORKERS = whole(0, 1000)


def main() -> int:
    """Run the command."""
    args = _parser().parse_args()
    from visionserve_tools.server import manage

    return manage.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="visionserve manage", description=__doc__)
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--state", type=Path, help="the server's state folder")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the models, their versions and workers")
    commands.add_parser("rotate", help="replace the inference and management keys")
    for name, help_ in (
        ("describe", "show a model's versions, workers and queue as JSON"),
        ("scale", "set a model's number of workers"),
        ("register", "add an archive of the model store: a model or a new version of one"),
        ("set-default", "choose the version that answers"),
        ("unregister", "remove a version of a model once its requests are answered"),
    ):
        command = commands.add_parser(name, help=help_)
        command.add_argument("archive" if name == "register" else "model")
        if name == "describe":
            command.add_argument(
                "--card", action="store_true", help="show the archive's model card instead"
            )
        if name == "scale":
            command.add_argument("minimum", type=WORKERS)
            command.add_argument("maximum", type=WORKERS, nargs="?", help="(the minimum)")
        if name == "register":
            command.add_argument("--workers", type=WORKERS, help="(the archive's minWorkers)")
        if name == "set-default":
            command.add_argument("version")
        if name in ("scale", "register"):
            command.add_argument(
                "--force", action="store_true", help="start more workers than the archive allows"
            )
        if name in ("scale", "unregister"):
            command.add_argument("--version", help="(the default version)")
    return parser
