"""The work of `visionserve manage`."""

import argparse
import json
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import requests

from visionserve_tools import lock, paths
from visionserve_tools.archive import handler
from visionserve_tools.archive.hashes import HashError
from visionserve_tools.archive.manifest import ArchiveError, read_config
from visionserve_tools.errors import closest, told
from visionserve_tools.server import snapshots
from visionserve_tools.server.client import Client
from visionserve_tools.server.retire import retire
from visionserve_tools.server.torchserve import NotRunningError, TorchServe, client_of

NO_MODEL = "No model is registered."


def run(args: argparse.Namespace) -> int:
    """Run `visionserve manage`: do what was asked, print the new state, return the exit code."""
    try:
        state = TorchServe.at(args.state or paths.STATE / args.profile).state
        reads = args.command in ("list", "describe")
        with nullcontext() if reads else lock.alone(state):
            print(_operate(args, TorchServe.at(state)), flush=True)
    except requests.HTTPError as error:
        print(_refusal(error, args, state), file=sys.stderr)
        return 1
    except (OSError, ValueError, ArchiveError, HashError, NotRunningError) as error:
        print(told(error), file=sys.stderr)
        return 1
    return 0


def _operate(args: argparse.Namespace, server: TorchServe) -> str:
    """Do what was asked, and return a description of the new state."""
    client = server.client
    snapshots.date(server.state)
    match args.command:
        case "list":
            return "\n".join(listing(client) or [NO_MODEL])
        case "describe":
            shown = client.card(args.model) if args.card else client.describe(args.model)
            return json.dumps(shown, indent=2, ensure_ascii=False)
        case "scale":
            version = args.version or client.default_version(args.model)
            file = client.describe(args.model, version)[0]["modelUrl"]
            if not args.force:
                _check_workers(server.admitted / file, max(args.minimum, args.maximum or 0))
            client.scale(args.model, args.minimum, args.maximum, version)
            return _state(f"{args.model} {version}", client.describe(args.model, version)[0])
        case "register":
            if not args.force:
                _check_workers(server.store / args.archive, args.workers or 0)
            archive = server.register(args.archive, args.workers)
            (entry,) = client.describe(archive.model, archive.version)
            state = _state(f"{archive.model} {archive.version}", entry)
            if handler.differing(server.admitted / args.archive):
                name = args.archive.removesuffix(".mar")
                state += f"; by an older handler, so metrics may miss it: visionserve repack {name}"
            return state
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


def _check_workers(archive: Path, wanted: int) -> None:
    """Refuse more workers than an archive's `maxWorkers`, as each takes a core and its memory.

    Raises:
        ValueError: there would be more.
        ArchiveError: the file is no model archive.
    """
    if wanted > 1 and wanted > (most := read_config(archive).maxWorkers):
        raise ValueError(
            f"{archive.name} allows {most} worker{'s' * (most > 1)} (maxWorkers of its profile), "
            f"not {wanted}: --force starts them all the same."
        )


def listing(client: Client) -> list[str]:
    """Return a line for each version of each model: its workers, and whether it is the default."""
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


def _refusal(error: requests.HTTPError, args: argparse.Namespace, state: Path) -> str:
    """Turn TorchServe's error response into one line for the user."""
    try:
        message = error.response.json()["message"]
    except (ValueError, KeyError):
        message = error.response.text.strip()
    if error.response.status_code == 405:
        message += (
            f" Profile {args.profile} registers and unregisters no models (enable_model_api)."
        )
    if error.response.status_code == 404 and hasattr(args, "model"):
        with suppress(requests.RequestException, OSError, ValueError, KeyError):
            message += closest(args.model, client_of(state).models())
    return f"{error.response.status_code}: {message}"
