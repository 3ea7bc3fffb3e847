"""The work of `visionserve serve`."""

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests
import yaml

from visionserve_tools import advice, environment, lock, paths, photos
from visionserve_tools.archive import handler
from visionserve_tools.archive.groups import find_groups
from visionserve_tools.archive.hashes import HashError
from visionserve_tools.archive.manifest import ArchiveError, read_age, read_config
from visionserve_tools.archive.store import adopt
from visionserve_tools.archive.weights import WeightsError
from visionserve_tools.environment import InstallError
from visionserve_tools.errors import told
from visionserve_tools.kept import check_file, read_json
from visionserve_tools.server.client import Client
from visionserve_tools.server.manage import NO_MODEL, listing
from visionserve_tools.server.nginx import Proxy
from visionserve_tools.server.plan import DEFAULT, Plan, of_names, of_record
from visionserve_tools.server.snapshots import Entry, Models, each
from visionserve_tools.server.torchserve import NotRunningError, StartError, TorchServe


def start(
    server: TorchServe, names: Sequence[str], mirror: str | None, groups: Path | None = None
) -> None:
    """Build missing archives, start the server with them, and show an answer of each model.

    A server that already runs with the same archives and properties goes on as it is.

    Args:
        server: the server, running or not.
        names: models that can be built, and archives in the store, named without `.mar`. If
            empty, all that the profile served last is served again: versions, defaults, workers;
            or with groups the default model.
        mirror: see `archive.weights.resolve`.
        groups: a file of groups that become the models' classes; see `choose`.

    Raises:
        ArchiveError: a name is neither a model that can be built nor an archive, or none is left
            of what was served last.
        WeightsError: a model's weights are corrupt.
        InstallError: pip could not install a package that is needed to build or serve.
        StartError: the server did not become ready.
        OSError: something else has the name of a file that is written; nothing was stopped.
    """
    server.check_path()
    server.check_ports()
    for file in (server.state / "server.json", server.state / "config.properties"):
        check_file(file)
    if names or groups:
        plan = of_names(names or [DEFAULT], server, mirror, groups)
    else:
        plan = of_record(server, mirror)
    if not server.runs(plan.models, plan.hashes):
        # The profiles share their ports: two that start at once would take some from each other.
        with lock.alone(paths.STATE):
            server.check_ports()
            server.stop()
            launch(server, plan)
    announce(server, plan.models)


def launch(server: TorchServe, plan: Plan) -> None:
    """Start the server; install PyTorch first if an archive needs it.

    Raises:
        StartError: it did not become ready; of what was served last, it says how to serve another.
    """
    for archive in plan.archives:
        if read_config(server.store / archive.file).handler.runtime == "pytorch":
            environment.require("pytorch", f"{archive.file} runs on PyTorch")
    if not plan.recorded:
        files = [f"{model}={entry['marName']}" for model, _, entry in each(plan.models)]
        server.start(files, plan.asked)
        return
    try:
        server.restore(plan.models, plan.asked)
    except StartError as error:
        raise StartError(f"{error}\nThis was served last; MODELS names others.") from None


def announce(server: TorchServe, models: Models) -> None:
    """Print the address, what is served, how to send requests, and an answer of each model.

    A model without workers is not asked.

    Raises:
        StartError: a model gives no answer; nothing is printed.
    """
    client = server.client
    asked = [
        model
        for model, _, entry in each(models)
        if entry["defaultVersion"] and entry.get("minWorkers", 1)
    ]
    answers = {model: ask(client, model) for model in asked}
    url = f"{client.inference}/predictions/{next(iter(models))}"
    print(f"TorchServe answers at {client.inference}, profile {server.profile}.")
    for model, version, entry in each(models):
        print(f"  {_described(server, model, version, entry)}")
    if server.needs_token:
        keys = shlex.quote(str(_short(server.state / "key_file.json")))
        code = "import json, sys; print(json.load(open(sys.argv[1]))['inference']['key'])"
        proxy = f"{advice.PROGRAM} proxy start --upstream"
        print(f'  token: TOKEN=$({advice.PYTHON} -c "{code}" {keys})')
        print(f'  ask:   curl -H "Authorization: Bearer $TOKEN" -T image.jpg {url}')
        print(f"  page:  {proxy} {client.inference} {keys} --model {next(iter(models))}")
    else:
        print(f"  ask:   curl -T image.jpg {url}")
        print(f"  page:  {url}")
    if not server.temp.is_relative_to(server.state):
        print(f"  {server.state} is too long a path for a Unix socket: sockets and unpacked")
        print(f"  archives lie in {server.temp}, which no cleaner may empty.")
    if lacks_cuda(server.profile):
        print(f"  No CUDA device is here: profile {server.profile} runs on the CPU, slowly.")
    for model, answer in answers.items():
        show(answer, model)


def _described(server: TorchServe, model: str, version: str, entry: Entry) -> str:
    """Return a version's line: whether it is the default, its engine, age, and what it needs."""
    archive = server.admitted / entry["marName"]
    line = f"{model} {version}{' (default)' * entry['defaultVersion']}"
    if engine := _engine(server.client, model, version, entry):
        line += f", {engine}"
    if (age := read_age(archive)) is not None:
        line += f", built {_since(age)}"
    if handler.differing(archive):
        profile = "" if server.profile == "local" else f" --profile {server.profile}"
        line += f", by an older handler: {advice.PROGRAM} repack {archive.stem}{profile}"
    return line


def _engine(client: Client, model: str, version: str, entry: Entry) -> str | None:
    """Ask a version what it runs on and computes in; None where no worker of ours could tell."""
    if not entry.get("minWorkers", 1):
        return None
    try:
        card = client.card(model, version)
        return f"{card['runtime']} {card['precision']}"
    except (requests.RequestException, KeyError, TypeError):
        return None


def _since(age: timedelta) -> str:
    """Return an age in words, in its largest unit."""
    seconds = int(age.total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := seconds // length:
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


def lacks_cuda(profile: str) -> bool:
    """Tell whether a profile needs a GPU and TorchServe finds none.

    TorchServe finds GPUs through nvidia-smi.
    """
    config = yaml.safe_load((paths.profile(profile) / paths.MODEL_CONFIG).read_text())
    return config.get("deviceType") == "gpu" and shutil.which("nvidia-smi") is None


def stop(server: TorchServe) -> None:
    """Stop the server, and print whether one ran."""
    pid = server.pid
    if server.stop():
        print(f"Stopped the server of profile {server.profile} (process {pid}).")
    else:
        print(f"No server of profile {server.profile} ran.")


def status() -> None:
    """Print whether each profile's server and nginx run, with address, models and token file."""
    for profile in paths.profiles():
        try:
            server = TorchServe.at(paths.STATE / profile)
            client = server.client
        except NotRunningError:
            print(f"{profile}: stopped")
            continue
        except ValueError as error:
            print(f"{profile}: {error}")
            continue
        print(f"{profile}: runs at {client.inference}, process {server.pid}")
        try:
            lines, models = listing(client), client.models()
        except (requests.RequestException, OSError, KeyError, ValueError) as error:
            print(f"  does not answer: {told(error)}")
            continue
        print("\n".join(f"  {line}" for line in lines or [NO_MODEL]))
        if models:
            print(f"  page: {_page(server, models[0])}")
        if server.needs_token:
            print(f"  token: {_token_age(server.state / 'key_file.json')}")
    print(f"nginx: {Proxy(paths.STATE / 'nginx').status()}")


def _page(server: TorchServe, model: str) -> str:
    if server.needs_token:
        return "behind nginx, which holds the token (visionserve proxy start)"
    return f"{server.client.inference}/predictions/{model}"


def _token_age(key_file: Path) -> str:
    """Return how old the keys are and when they expire, for the user.

    TorchServe writes the file when it makes the keys, so the file's age is theirs.
    """
    hours = (time.time() - key_file.stat().st_mtime) / 3600
    try:
        until = read_json(key_file)["inference"].get("expiration time", "?")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        until = "?"
    return f"{_short(key_file)}, {hours:.1f} hours old, good until {until}"


def _short(path: Path) -> Path:
    return path.relative_to(here) if path.is_relative_to(here := Path.cwd()) else path


def ask(client: Client, model: str) -> dict[str, Any]:
    """Return a model's answer for the photograph of a cat.

    Raises:
        StartError: the response is an error.
    """
    response = client.predict(model, photos.greeting().read_bytes())
    if not response.ok:
        raise StartError(f"{model} does not answer: {response.status_code} {response.text.strip()}")
    answer: dict[str, Any] = response.json()
    return answer


def show(answer: Mapping[str, Any], name: str) -> None:
    """Print the predictions of an answer."""
    print(f"\n{name} {answer['version']} on {photos.greeting().name}, TTA {answer['tta']}:")
    for prediction in answer["predictions"]:
        print(f"  {prediction['probability']:6.1%}  {prediction['label']}")


def run(args: argparse.Namespace) -> int:
    """Run `visionserve serve`, and return its exit code."""
    try:
        if args.command == "status":
            status()
            return 0
        # One that is there may be another user's, as a pod's volume is.
        for folder in (paths.STATE, state := paths.STATE / args.profile):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock.alone(state):
            _change(args)
    except (
        *(OSError, ArchiveError, StartError, HashError, WeightsError, InstallError),
        *(ValueError, requests.RequestException),
    ) as error:
        print(told(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; give the command again to go on.", file=sys.stderr)
        return 130
    return 0


def _change(args: argparse.Namespace) -> None:
    """Start or stop the profile's server."""
    if args.command == "stop":
        stop(_server(args))
        return
    server = _server(args, dict(args.set), args.allow_unrecorded)
    if args.groups and args.archive:
        raise ValueError("An archive has its classes: give groups to visionserve build.")
    groups = find_groups(args.groups) if args.groups else None
    if args.archive:
        args.models = [adopt(args.archive, server.store, bool(args.allow_unrecorded))]
    start(server, args.models, args.mirror, groups)


def _server(
    args: argparse.Namespace,
    overrides: Mapping[str, str] | None = None,
    unrecorded: bool | None = None,
) -> TorchServe:
    store = paths.MODEL_STORE / args.profile
    return TorchServe(args.profile, paths.STATE / args.profile, store, overrides, unrecorded)
