"""Start and stop the service of a profile."""

import argparse
import sys

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
    wanted = "\n".join(
        [*(archive.with_suffix(".json").read_text() for archive in built.values()), str(overrides)]
    )
    if server.pid is None or not running.exists() or running.read_text() != wanted:
        server.stop()
        server.start([f"{name}={archive.name}" for name, archive in built.items()])
        running.write_text(wanted)
    client = server.client
    print(f"TorchServe answers at {client.inference}, profile {profile}.")
    for name in built:
        show(client.predict(name, photos.greeting().read_bytes()), name)


def show(response: requests.Response, name: str) -> None:
    """Print one answer."""
    response.raise_for_status()
    answer = response.json()
    print(f"\n{name} {answer['version']} on {photos.greeting().name}, TTA {answer['tta']}:")
    for prediction in answer["predictions"]:
        print(f"  {prediction['probability']:6.1%}  {prediction['label']}")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.serve", description=__doc__)
    parser.add_argument("command", choices=("start", "stop"))
    parser.add_argument("--profile", default="local", choices=paths.profiles())
    parser.add_argument("--models", nargs="+", default=[DEFAULT], choices=MODELS)
    parser.add_argument(
        *("--set", "-s"),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a property in place of the profile's",
    )
    args = parser.parse_args()
    overrides = dict(pair.split("=", 1) for pair in args.set)
    if args.command == "stop":
        TorchServe(args.profile, paths.STATE / args.profile, paths.MODEL_STORE).stop()
        return 0
    try:
        start(args.profile, args.models, overrides)
    except (WeightsError, StartError, HashError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
