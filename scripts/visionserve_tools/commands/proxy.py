"""Start and stop nginx in front of one or several TorchServes."""

from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.arguments import Parser
from visionserve_tools.server.canary import Canary
from visionserve_tools.server.nginx import Site


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve proxy",
        description=__doc__,
        example="visionserve proxy start --upstream http://127.0.0.1:8080 "
        ".torchserve/server/key_file.json",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser(
        "start",
        help="start nginx, or let a running one read new values",
        example="visionserve proxy start --canary resnet18=2.0:5%",
    )
    run = commands.add_parser(
        "run",
        help="become nginx in the foreground, as a container does",
        example="visionserve proxy run --upstream http://127.0.0.1:8080 key_file.json",
    )
    stop = commands.add_parser(
        "stop", help="stop nginx once it has answered what it has", example="visionserve proxy stop"
    )
    for command in (start, run, stop):
        command.add_argument("--state", type=Path, default=paths.STATE / "nginx")
    for command in (start, run):
        command.add_argument(
            "--upstream",
            nargs=2,
            action="append",
            metavar=("URL", "KEY_FILE"),
            help="a TorchServe's inference address and its key_file.json; once for each. Without, "
            "all is as it was started last, but for the options that are given",
        )
        command.add_argument("--listen", metavar="ADDRESS:PORT", help=f"({Site.listen})")
        command.add_argument(
            "--probes", metavar="ADDRESS:PORT", help=f"of /ping and /metrics ({Site.probes})"
        )
        command.add_argument("--model", help="that / shows and /ping asks (one that is served)")
        command.add_argument("--rate", help=f"requests of one client ({Site.rate})")
        command.add_argument(
            "--canary",
            nargs="+",
            type=Canary.parse,
            action="extend",
            default=[],
            metavar="MODEL=VERSION:SHARE%",
            help="a version for a share of the clients, such as resnet18=2.0:5%%; 0%% ends it",
        )
        command.add_argument(
            "--trust",
            nargs="+",
            metavar="NETWORK",
            help="load balancers whose X-Forwarded-For names the client",
        )
        command.add_argument(
            "--allow-origin",
            nargs="+",
            metavar="ORIGIN",
            help="other web pages that browsers may let ask, such as https://app.example",
        )
    args = parser.parse_args()
    from visionserve_tools.server import proxy

    return proxy.run(args)
