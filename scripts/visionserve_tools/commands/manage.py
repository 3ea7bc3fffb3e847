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
    parser = Parser(
        prog="visionserve manage",
        description=__doc__,
        example="visionserve manage --profile server scale resnet18 4",
    )
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--state", type=Path, help="the server's state folder")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, example, help_ in (
        ("list", "", "name the models, their versions and workers"),
        ("rotate", "", "replace the inference and management keys"),
        ("describe", "resnet18 --card", "show a model's versions, workers and queue as JSON"),
        ("scale", "resnet18 4", "set a model's number of workers"),
        (
            "register",
            "resnet18-2.0.mar",
            "add an archive of the model store: a model or a new version of one",
        ),
        ("set-default", "resnet18 2.0", "choose the version that answers"),
        (
            "unregister",
            "resnet18 --version 1.0",
            "remove a version of a model once its requests are answered",
        ),
    ):
        called = f"visionserve manage {name} {example}".rstrip()
        command = commands.add_parser(name, help=help_, example=called)
        if name not in ("list", "rotate"):
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
