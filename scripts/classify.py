"""Classify many images: one row each, in order, as CSV, JSON Lines or Parquet."""

import argparse
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import get_args

import requests
from tqdm import tqdm

from scripts import paths
from scripts.archive.hashes import sha256_of
from scripts.batch import listing, server_engine
from scripts.batch.provenance import Provenance
from scripts.batch.rows import Body, RunError, row
from scripts.batch.sinks import open_sink
from scripts.server.client import Client
from scripts.server.torchserve import client_of
from visionserve.config import Language, Options

Engine = Callable[[Iterator[Path]], Generator[tuple[Path, Body]]]


def named(args: argparse.Namespace) -> Iterator[Path]:
    """Yield the images that the command names, those of `--list` last."""
    listed = listing.read_list(args.list) if args.list else iter(())
    return chain(listing.expand(args.paths), listed)


def count(args: argparse.Namespace) -> int | None:
    """Count the images beforehand; standard input can be read only once."""
    return None if args.list == "-" else sum(1 for _ in named(args))


def connect(args: argparse.Namespace) -> tuple[Client, str]:
    """Return a client and the model to ask.

    Raises:
        RunError: the server, its key or a single model of it cannot be found.
    """
    start = f"make serve PROFILE={args.profile}"
    try:
        if args.server:
            client = Client(args.server.rstrip("/"), args.server, args.key_file)
        else:
            client = client_of(paths.STATE / args.profile)
        client.token("inference")
        models = [args.model] if args.model else client.models()
    except requests.RequestException:
        raise RunError(f"{client.management}: no server answers; start it by {start}.") from None
    except FileNotFoundError as error:
        raise RunError(f"{error.filename}: no such file; start the server by {start}.") from None
    except (KeyError, ValueError):
        raise RunError(f"{args.key_file}: not a key file of TorchServe.") from None
    if len(models) != 1:
        raise RunError(f"Choose one with --model: {', '.join(models) or 'none is registered'}.")
    return client, models[0]


def choose(args: argparse.Namespace) -> tuple[Engine, Provenance]:
    """Return the engine, and what its rows are made with.

    Raises:
        RunError: there is no such server, or no Ray.
        OSError: the archive cannot be read.
    """
    wanted: Provenance = {
        option: getattr(args, option) for option in ("tta", "top_k", "threshold", "language")
    }
    options = {option: str(value) for option, value in wanted.items() if value is not None}
    if args.engine == "server":
        client, model = connect(args)
        profile = None if args.server else args.profile
        where = {"server": client.inference, "profile": profile, "model": model}
        return (
            lambda images: server_engine.classify(
                client, model, options, images, args.concurrency, args.retries
            ),
            {**where, **wanted},
        )
    try:
        from scripts.batch import ray_engine
    except ImportError:
        raise RunError("The engine needs Ray: pip install '.[ray]'.") from None
    return (
        lambda images: ray_engine.classify(
            args.archive, options, images, args.concurrency, args.address
        ),
        {"archive": args.archive.name, "sha256": sha256_of(args.archive), **wanted},
    )


def run(args: argparse.Namespace) -> int:
    """Classify, and return the number of errors.

    Raises:
        RunError: the run cannot begin or go on.
        OSError: a list cannot be read, or the output not be written.
    """
    classify, made_with = choose(args)
    top_k = args.top_k or Options().top_k
    with closing(open_sink(args.output, top_k, made_with, args.overwrite)) as sink:
        remaining = named(args)
        kept = sink.resume(remaining)
        if kept.again:
            print(f"Asking again for {len(kept.again)} that the server failed.", file=sys.stderr)
        rows, errors = kept.rows, kept.errors
        hidden = sink.for_people or None
        with (
            tqdm(total=count(args), initial=rows, unit=" images", disable=hidden) as bar,
            closing(classify(chain(kept.again, remaining))) as answers,
        ):
            for path, body in answers:
                sink.write(row(path, body, top_k))
                rows, errors = rows + 1, errors + ("error" in body)
                bar.update()
        if rows == 0:
            raise RunError("There are no images.")
        sink.finish()
    print(f"{rows} images, errors: {errors}.", file=sys.stderr)
    return errors


def main() -> int:
    """Run the command: 0 without errors, 1 with some rows of errors, 2 where it had to stop.

    Ctrl-C and SIGTERM leave a whole output that the command goes on with.
    """
    parser = argparse.ArgumentParser(prog="visionserve classify", description=__doc__)
    parser.add_argument("paths", nargs="*", help="files, folders or glob patterns")
    parser.add_argument("--list", metavar="FILE", help="a path per line; - for standard input")
    parser.add_argument(
        "--output",
        type=Path,
        help="FILE.csv, .jsonl or .parquet; one that an interrupted run left is gone on with",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin the output anew")
    parser.add_argument("--tta", help="views of each image (the archive's default)")
    parser.add_argument("--top-k", type=positive, help="predictions per image (3 at most)")
    parser.add_argument("--threshold", help="probability of a confident answer (the archive's)")
    parser.add_argument("--language", choices=get_args(Language), help="of the labels (en)")
    parser.add_argument("--concurrency", type=positive, default=4, help="requests or actors (4)")
    parser.add_argument("--engine", choices=("server", "ray"), default="server")
    server = parser.add_argument_group("the server engine")
    server.add_argument(
        "--profile",
        choices=paths.profiles(),
        help="ask the server that make serve started, with its key (local)",
    )
    server.add_argument("--server", metavar="URL", help="ask another one")
    server.add_argument("--model", help="(the only one of the profile's server)")
    server.add_argument("--key-file", type=Path, help="key_file.json of --server")
    server.add_argument("--retries", type=int, default=8, help="while busy or unreachable (8)")
    ray = parser.add_argument_group("the ray engine")
    ray.add_argument("--archive", type=Path, help="the .mar to classify with")
    ray.add_argument("--address", help="of a running cluster (one on this machine)")
    args = parser.parse_args()
    if not args.paths and not args.list:
        parser.error("name images, or a --list of them")
    if args.engine == "ray" and not args.archive:
        parser.error("--engine ray needs --archive")
    if args.server and args.profile:
        parser.error("give --profile or --server, not both")
    if args.overwrite and not args.output:
        parser.error("--overwrite goes with --output")
    if args.server and not args.model:
        parser.error("--server needs --model")
    if args.key_file and not args.server:
        parser.error("--key-file goes with --server")
    args.profile = args.profile or "local"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return 1 if run(args) else 0
    except (RunError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def positive(text: str) -> int:
    """Read a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
