"""Operate a running server through TorchServe's management API."""

import argparse
import json
import sys
from pathlib import Path

from scripts import paths
from scripts.hashes import HashError, verify
from scripts.retire import retire
from scripts.torchserve import client_of, store_of


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.manage", description=__doc__)
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--state", type=Path, help="the server's state folder")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the models")
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
        if name == "scale":
            command.add_argument("minimum", type=int)
            command.add_argument("maximum", type=int, nargs="?", help="(the minimum)")
        if name == "register":
            command.add_argument("--workers", type=int, default=1)
        if name == "set-default":
            command.add_argument("version")
        if name in ("scale", "unregister"):
            command.add_argument("--version", help="(the default version)")
    args = parser.parse_args()
    state = args.state or paths.STATE / args.profile
    try:
        client = client_of(state)
        match args.command:
            case "list":
                print("\n".join(client.models()))
            case "describe":
                print(json.dumps(client.describe(args.model), indent=2))
            case "scale":
                client.scale(args.model, args.minimum, args.maximum, args.version)
            case "register":
                verify(store_of(state) / args.archive)
                client.register(args.archive, args.workers)
            case "set-default":
                client.set_default(args.model, args.version)
            case "unregister":
                retire(client, store_of(state), args.model, args.version)
            case "rotate":
                client.rotate()
                print(f"New keys are in {state / 'key_file.json'}; nginx has them already.")
    except (OSError, HashError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
