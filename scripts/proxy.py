"""Start and stop nginx in front of one or several TorchServes."""

import sys
from pathlib import Path

from scripts import paths
from scripts.arguments import Parser
from scripts.server.nginx import Proxy, ProxyError, Site, Upstream

TIMEOUT = 10


def main() -> int:
    """Run the command."""
    parser = Parser(prog="visionserve proxy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start nginx, or let a running one read new values")
    run = commands.add_parser("run", help="become nginx in the foreground, as a container does")
    stop = commands.add_parser("stop", help="stop nginx once it has answered what it has")
    for command in (start, run, stop):
        command.add_argument("--state", type=Path, default=paths.STATE / "nginx")
    for command in (start, run):
        command.add_argument(
            "--upstream",
            nargs=2,
            action="append",
            required=True,
            metavar=("URL", "KEY_FILE"),
            help="a TorchServe's inference address and its key_file.json; once for each",
        )
        command.add_argument("--listen", default=Site.listen, metavar="ADDRESS:PORT")
        command.add_argument(
            "--probes", default=Site.probes, metavar="ADDRESS:PORT", help="of /ping and /metrics"
        )
        command.add_argument("--model", default=Site.model, help="that / shows and /ping asks")
        command.add_argument("--rate", default=Site.rate, help="requests of one client")
        command.add_argument(
            "--trust",
            nargs="+",
            default=[],
            metavar="NETWORK",
            help="load balancers whose X-Forwarded-For names the client",
        )
        command.add_argument(
            "--allow-origin",
            nargs="+",
            default=[],
            metavar="ORIGIN",
            help="other web pages that browsers may let ask, such as https://app.example",
        )
    args = parser.parse_args()
    proxy = Proxy(args.state)
    try:
        if args.command == "stop":
            print(proxy.stop())
            return 0
        upstreams = tuple(Upstream(url.rstrip("/"), Path(file)) for url, file in args.upstream)
        lists = tuple(args.trust), tuple(args.allow_origin)
        site = Site(upstreams, args.listen, args.probes, args.model, args.rate, *lists)
        if args.command == "run":
            proxy.run(site)
        # A `stop` meanwhile waits, so that it is not taken for a server that is not there.
        with proxy.started(site):
            serves = _serves(site)
    except (ProxyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"nginx answers at http://{site.listen}.")
    if not serves:
        print(f"No server behind it answers for {site.model}: see --model and --upstream.")
        return 1
    return 0


def _serves(site: Site) -> bool:
    """Ask nginx whether a server behind it answers for the site's model."""
    import requests

    try:
        return requests.get(f"http://{site.probes}/ping", timeout=TIMEOUT).ok
    except requests.RequestException:
        return False


if __name__ == "__main__":
    sys.exit(main())
