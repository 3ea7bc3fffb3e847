"""The work of `visionserve proxy`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from visionserve_tools.errors import told
from visionserve_tools.server.nginx import Proxy, ProxyError, Site, Upstream
from visionserve_tools.server.torchserve import client_of

TIMEOUT = 10


def run(args: argparse.Namespace) -> int:
    """Run `visionserve proxy`, and return its exit code."""
    proxy = Proxy(args.state)
    try:
        if args.command == "stop":
            print(proxy.stop())
            return 0
        site = _site(args, proxy)
        if args.command == "run":
            proxy.run(site)
        # A `stop` meanwhile waits, so that it is not taken for a server that is not there.
        with proxy.shifted(site) if _shifts(args, proxy, site) else proxy.started(site):
            serves = _serves(site)
    except (ProxyError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    canaries = (f"{canary}." for canary in site.canaries)
    print("\n".join([f"nginx answers at http://{site.listen}.", *canaries]))
    if not serves:
        print(f"No server behind it answers for {site.model}: see --model and --upstream.")
        return 1
    return 0


def _site(args: argparse.Namespace, proxy: Proxy) -> Site:
    """Return the site that is asked for.

    Raises:
        ProxyError: no upstream is given, and there was no start before.
    """
    given: dict[str, Any] = {
        "listen": args.listen,
        "probes": args.probes,
        "model": args.model,
        "rate": args.rate,
        "trusted": args.trust and tuple(args.trust),
        "origins": args.allow_origin and tuple(args.allow_origin),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if args.upstream:
        named = ((url.rstrip("/"), Path(file).absolute()) for url, file in args.upstream)
        upstreams = tuple(Upstream(*one) for one in named)
        site = Site(upstreams, **{"model": args.model or _served(upstreams), **given})
    else:
        site = replace(proxy.site, **given)
    models = {canary.model for canary in args.canary}
    kept = (canary for canary in site.canaries if canary.model not in models)
    return replace(site, canaries=(*kept, *(one for one in args.canary if one.share)))


def _shifts(args: argparse.Namespace, proxy: Proxy, site: Site) -> bool:
    """Tell whether nothing but the canaries of a running nginx is to change."""
    if args.upstream or not args.canary or not proxy.pid:
        return False
    return site == replace(proxy.site, canaries=site.canaries)


def _served(upstreams: Sequence[Upstream]) -> str:
    """Return a model that all servers serve whose state folder is here; `Site`'s if none is."""
    served = []
    for upstream in upstreams:
        with suppress(OSError, ValueError, KeyError, requests.RequestException):
            client = client_of(upstream.key_file.parent)
            at_work = (m for m in client.models() if any(v["workers"] for v in client.describe(m)))
            served.append(list(at_work))
    common = [model for model in (served or [[]])[0] if all(model in of_one for of_one in served)]
    return Site.model if Site.model in common or not common else common[0]


def _serves(site: Site) -> bool:
    """Ask nginx whether a server behind it answers for the site's model."""
    try:
        return requests.get(f"http://{site.probes}/ping", timeout=TIMEOUT).ok
    except requests.RequestException:
        return False
