"""Start and stop the service of a profile."""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

import requests

from scripts import archives, environment, paths, photos
from scripts.build import DEFAULT, MIRROR_HELP, build_or_fall_back
from scripts.environment import InstallError
from scripts.hashes import HashError
from scripts.torchserve import StartError, TorchServe
from scripts.weights import WeightsError


def start(
    profile: str,
    models: list[str],
    archive: Path | None,
    mirror: str | None,
    overrides: dict[str, str],
) -> None:
    """Build what is missing, start the server unless it runs with just that, and show an answer.

    Args:
        profile: a folder of `config/`.
        models: names of `visionserve.models.MODELS`.
        archive: one that was built elsewhere, to be served in place of the models.
        mirror: see `scripts.weights.resolve`.
        overrides: properties in place of the profile's.

    Raises:
        ValueError: a model is unknown.
        WeightsError: a model's weights are corrupt or another model's.
        InstallError: pip could not install what building or serving takes.
        HashError: the archive is not the one that was recorded, or has no record.
        ProofError: a converted model's answers are not those of its weights.
        StartError: the server did not become ready.
    """
    built = (
        dict([archives.adopt(archive, paths.MODEL_STORE / profile)])
        if archive
        else dict(build_or_fall_back(model, profile, mirror=mirror) for model in models)
    )
    for path in built.values():
        if archives.runtime(path) == "pytorch":
            environment.require("pytorch", f"{path.name} runs on PyTorch")
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
    parser.add_argument("--models", nargs="+", default=[DEFAULT])
    parser.add_argument("--archive", type=Path, help="one that was built elsewhere, in their place")
    parser.add_argument("--mirror", metavar="URL", help=MIRROR_HELP)
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
                start(args.profile, args.models, args.archive, args.mirror, overrides)
            case "restore":
                restore(args.profile, overrides)
            case "stop":
                TorchServe(args.profile, paths.STATE / args.profile, paths.MODEL_STORE).stop()
    except (OSError, ValueError, WeightsError, InstallError, StartError, HashError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
