"""Operate a running server through TorchServe's management API."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import requests

from scripts import paths
from scripts.archive.hashes import HashError
from scripts.archive.store import ArchiveError
from scripts.server.client import Client
from scripts.server.retire import retire
from scripts.server.torchserve import NotRunningError, TorchServe


def main() -> int:
    """Run the command."""
    args = _parser().parse_args()
    try:
        server = TorchServe.at(args.state or paths.STATE / args.profile)
        print(_run(args, server), flush=True)
    except BrokenPipeError:
        # The reader, such as head, has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except requests.HTTPError as error:
        print(_refusal(error, args.profile), file=sys.stderr)
        return 1
    except (OSError, ArchiveError, HashError, NotRunningError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visionserve manage", description=__doc__)
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
            command.add_argument("minimum", type=_count)
            command.add_argument("maximum", type=_count, nargs="?", help="(the minimum)")
        if name == "register":
            command.add_argument("--workers", type=_count, help="(the archive's minWorkers)")
        if name == "set-default":
            command.add_argument("version")
        if name in ("scale", "unregister"):
            command.add_argument("--version", help="(the default version)")
    return parser


def _count(text: str) -> int:
    """Read a number of workers.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: give a number of workers, 0 or more.")
    return int(text)


def _run(args: argparse.Namespace, server: TorchServe) -> str:
    """Do what was asked, and say what is so now."""
    client = server.client
    match args.command:
        case "list":
            return "\n".join(listing(client)) or "No model is registered."
        case "describe":
            shown = client.card(args.model) if args.card else client.describe(args.model)
            return json.dumps(shown, indent=2, ensure_ascii=False)
        case "scale":
            client.scale(args.model, args.minimum, args.maximum, args.version)
            version = args.version or client.default_version(args.model)
            return _state(f"{args.model} {version}", client.describe(args.model, version)[0])
        case "register":
            archive = server.register(args.archive, args.workers)
            (entry,) = client.describe(archive.model, archive.version)
            return _state(f"{archive.model} {archive.version}", entry)
        case "set-default":
            client.set_default(args.model, args.version)
            return f"{args.model} {client.default_version(args.model)} is the default now."
        case "rotate":
            client.rotate()
            return f"New keys are in {server.state / 'key_file.json'}; nginx has them already."
        case _:
            version = args.version or client.default_version(args.model)
            retire(client, server.admitted, args.model, args.version)
            return f"{args.model} {version} is gone; its requests were answered."


def listing(client: Client) -> list[str]:
    """Describe each version of each model in a line: workers, and which is the default."""
    lines = []
    for model in client.models():
        default = client.default_version(model)
        for entry in client.describe(model):
            is_default = entry["modelVersion"] == default
            lines.append(_state(f"{model} {entry['modelVersion']}", entry, is_default))
    return lines


def _state(name: str, entry: dict[str, Any], is_default: bool = False) -> str:
    ready = sum(worker["status"] == "READY" for worker in entry["workers"])
    bounds = sorted({entry["minWorkers"], entry["maxWorkers"]})
    wanted = " to ".join(str(bound) for bound in bounds)
    return f"{name}{' (default)' * is_default}: workers {ready} ready, {wanted} wanted"


def _refusal(error: requests.HTTPError, profile: str) -> str:
    """Turn TorchServe's answer into one line."""
    try:
        message = error.response.json()["message"]
    except (ValueError, KeyError):
        message = error.response.text.strip()
    if error.response.status_code == 405:
        message += f" Profile {profile} registers and unregisters no models (enable_model_api)."
    return f"{error.response.status_code}: {message}"


if __name__ == "__main__":
    sys.exit(main())
