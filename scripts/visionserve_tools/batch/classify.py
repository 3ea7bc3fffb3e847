"""The work of `visionserve classify`."""

import argparse
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path

import requests
from tqdm import tqdm

from visionserve.config import ModelConfig, Options
from visionserve_tools import advice, paths
from visionserve_tools.archive.hashes import sha256_of
from visionserve_tools.batch import features, listing, server_engine
from visionserve_tools.batch.provenance import WAYS_OUT, Provenance
from visionserve_tools.batch.rows import Body, RunError, row
from visionserve_tools.batch.sinks import open_sink
from visionserve_tools.batch.truth import Given
from visionserve_tools.errors import closest, told
from visionserve_tools.server.client import Client
from visionserve_tools.server.torchserve import client_of

Engine = Callable[[Iterator[Path]], Generator[tuple[Path, Body]]]


def named(args: argparse.Namespace) -> Iterator[Path]:
    """Yield the images that the command names, and then the images of `--list`."""
    listed = listing.read_list(args.list) if args.list else iter(())
    return chain(listing.expand(args.paths), listed)


def count(args: argparse.Namespace) -> int | None:
    """Count the images beforehand; None for a list, such as a pipe, that can be read only once."""
    is_read_once = args.list and (args.list == "-" or not Path(args.list).is_file())
    return None if is_read_once else sum(1 for _ in named(args))


def connect(args: argparse.Namespace) -> tuple[Client, str]:
    """Return a client and the model to ask.

    Raises:
        RunError: the server, its key or a single model of it cannot be found.
    """
    start = advice.serve("profile", args.profile)
    try:
        if args.server:
            client = Client(args.server.rstrip("/"), args.server, args.key_file)
        else:
            client = client_of(paths.STATE / args.profile)
        client.token("inference")
        models = [args.model] if args.model else client.models()
        if args.model and not args.server and args.model not in (served := client.models()):
            hint = closest(args.model, served) or f": {', '.join(served) or 'none'} is"
            raise RunError(f"{args.model} is not served{hint}.")
    except requests.RequestException:
        raise RunError(f"{client.management}: no server answers; start it by {start}.") from None
    except FileNotFoundError as error:
        raise RunError(f"{error.filename}: no such file; start the server by {start}.") from None
    except OSError as error:
        raise RunError(f"{error.filename}: {error.strerror}.") from None
    except ValueError as error:
        raise RunError(str(error)) from None
    if len(models) != 1:
        raise RunError(f"Choose one with --model: {', '.join(models) or 'none is registered'}.")
    return client, models[0]


def choose(args: argparse.Namespace) -> tuple[Engine, Provenance]:
    """Return the engine, and the provenance of its rows.

    Raises:
        RunError: there is no such server, or Ray is not installed.
        OSError: the archive cannot be read.
    """
    wanted: Provenance = {
        option: getattr(args, option) for option in ("tta", "top_k", "threshold", "language")
    }
    options = {option: str(value) for option, value in wanted.items() if value is not None}
    options |= {"features": "true"} if args.features else {}
    if args.engine == "server":
        client, model = connect(args)
        largest = ModelConfig.of(paths.profile(args.profile)).handler.max_image_bytes
        profile = None if args.server else args.profile
        where = {"server": client.inference, "profile": profile, "model": model}
        return (
            lambda images: server_engine.classify(
                client, model, options, images, args.concurrency, args.retries, largest
            ),
            {**where, **wanted},
        )
    try:
        from visionserve_tools.batch import ray_engine
    except ImportError:
        raise RunError(f"The engine needs Ray: {advice.PROGRAM} install ray") from None
    return (
        lambda images: ray_engine.classify(
            args.archive, options, images, args.concurrency, args.address
        ),
        {"archive": args.archive.name, "sha256": sha256_of(args.archive), **wanted},
    )


def run(args: argparse.Namespace) -> int:
    """Do what `visionserve classify` was asked.

    Ctrl-C and SIGTERM leave an output with whole rows only, which the command can resume.

    Returns:
        0 without errors, 1 if some rows hold errors, 2 if the command had to stop.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return 1 if classify(args) else 0
    except (RunError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; an output is gone on with by the same command.", file=sys.stderr)
        return 130


def classify(args: argparse.Namespace) -> int:
    """Classify, and return the number of errors.

    Raises:
        RunError: the run cannot begin or go on.
        OSError: a list cannot be read, or the output cannot be written.
    """
    truth = Given(args.labels) if args.labels else None
    engine, made_with = choose(args)
    top_k, is_named = args.top_k or Options().top_k, args.language is not None
    made_with = {**made_with, **(truth.provenance if truth else {})}
    sink = open_sink(args.output, top_k, made_with, args.overwrite, truth is not None)
    keeping = features.opened(args.features) if args.features else nullcontext()
    with closing(sink), keeping as kept_features:
        remaining = truth.counted(named(args)) if truth else named(args)
        kept = sink.resume(remaining)
        if kept_features and (kept.rows or kept.again):
            raise RunError(f"{args.output}: has rows, whose features are not at hand. {WAYS_OUT}")
        if kept.again:
            print(f"Asking again for {len(kept.again)} that the server failed.", file=sys.stderr)
        rows, errors = kept.rows, kept.errors
        hidden = sink.for_people or None
        with (
            tqdm(total=count(args), initial=rows, unit=" images", disable=hidden) as bar,
            closing(engine(chain(kept.again, remaining))) as bodies,
        ):
            for path, body in bodies:
                sink.write(row(path, body, top_k, truth, is_named))
                if kept_features:
                    kept_features.write(path, body)
                rows, errors = rows + 1, errors + ("error" in body)
                bar.update()
        if rows == 0:
            raise RunError("There are no images.")
        sink.finish()
    if truth and truth.missing:
        print(f"{args.labels} has no label for {truth.missing} of them.", file=sys.stderr)
    print(f"{rows} images, errors: {errors}.", file=sys.stderr)
    return errors
