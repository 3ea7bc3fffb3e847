"""Start and stop the service of a profile."""

import argparse
import sys
from collections.abc import Collection

import requests

from scripts import paths, photos
from scripts.build import DEFAULT, build_or_fall_back
from scripts.hashes import HashError
from scripts.torchserve import StartError, TorchServe
from scripts.weights import WeightsError
from visionserve.models import MODELS


def start(profile: str, models: list[str], overrides: dict[str, str]) -> None:
    """Build what is missing, start the server unless it runs with just that, and show an answer.

    Raises:
        WeightsError: a model's weights are corrupt or another model's.
        StartError: the server did not become ready.
    """
    built = dict(build_or_fall_back(model, profile) for model in models)
    server = TorchServe(profile, paths.STATE / profile, paths.MODEL_STORE / profile, overrides)
    running = paths.STATE / profile / "running.txt"
    records = [archive.with_suffix(".json") for archive in built.values()]
    ingredients = [*records, paths.CONFIG / profile / "config.properties"]
    wanted = "\n".join([*(path.read_text() for path in ingredients), str(overrides)])
    if not (serves(server, built) and running.exists() and running.read_text() == wanted):
        server.stop()
        server.start([f"{name}={archive.name}" for name, archive in built.items()])
        running.write_text(wanted)
    client = server.client
    print(f"TorchServe answers at {client.inference}, profile {profile}.")
    for name in built:
        show(client.predict(name, photos.greeting().read_bytes()), name)


def serves(server: TorchServe, models: Collection[str]) -> bool:
    """Tell whether a server runs, takes its tokens and has the models."""
    try:
        return server.pid is not None and set(models) <= set(server.client.models())
    except requests.RequestException:
        return False


def restore(profile: str, overrides: dict[str, str]) -> None:
    """Start the server with the models, versions and workers that it had when it ended.

    Raises:
        FileNotFoundError: it never ran.
        StartError: the server did not become ready.
    """
    server = TorchServe(profile, paths.STATE / profile, paths.MODEL_STORE / profile, overrides)
    server.stop()
    server.restore()
    print(f"TorchServe answers at {server.client.inference}, profile {profile}:")
    print("\n".join(server.client.models()))


def show(response: requests.Response, name: str) -> None:
    """Print one answer."""
    response.raise_for_status()
    answer = response.json()
    print(f"\n{name} {answer['version']} on {photos.greeting().name}, TTA {answer['tta']}:")
    for prediction in answer["predictions"]:
        print(f"  {prediction['probability']:6.1%}  {prediction['label']}")


def pair(text: str) -> tuple[str, str]:
    """Split `KEY=VALUE`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: give KEY=VALUE.")
    return key, value


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.serve", description=__doc__)
    parser.add_argument("command", choices=("start", "restore", "stop"))
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--models", nargs="+", default=[DEFAULT], choices=MODELS)
    parser.add_argument(
        *("--set", "-s"),
        action="append",
        type=pair,
        default=[],
        metavar="KEY=VALUE",
        help="a property in place of the profile's",
    )
    args = parser.parse_args()
    overrides = dict(args.set)
    try:
        match args.command:
            case "start":
                start(args.profile, args.models, overrides)
            case "restore":
                restore(args.profile, overrides)
            case "stop":
                TorchServe(args.profile, paths.STATE / args.profile, paths.MODEL_STORE).stop()
    except (OSError, WeightsError, StartError, HashError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
