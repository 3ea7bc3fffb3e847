"""Start and stop nginx in front of one or several TorchServes."""

import argparse
import os
import shutil
import string
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts import paths
from scripts.client import Client
from scripts.processes import running

STOP_TIMEOUT = 35


class ProxyError(Exception):
    """Nginx is missing, refuses its configuration, or does not stop."""


@dataclass(frozen=True)
class Upstream:
    """A TorchServe.

    Attributes:
        url: address of its inference API, such as ``http://127.0.0.1:8080``.
        key_file: its `key_file.json`, whose inference token nginx sends.
    """

    url: str
    key_file: Path


@dataclass(frozen=True)
class Site:
    """What differs from one nginx to another.

    Attributes:
        upstreams: the TorchServes.
        listen: address that clients use, as nginx writes it.
        model: the model whose page `/` shows.
        rate: requests that one client may send, as nginx writes it: ``20r/s``, ``30r/m``.
        trusted: networks of load balancers, whose X-Forwarded-For is believed.
    """

    upstreams: tuple[Upstream, ...]
    listen: str = "127.0.0.1:8000"
    model: str = "resnet18"
    rate: str = "20r/s"
    trusted: tuple[str, ...] = ()


class Proxy:
    """An nginx with its configuration, sockets, logs and temporary files in a folder.

    Args:
        state: the folder; its path, which Unix sockets lie under, may have 80 characters.
    """

    def __init__(self, state: Path) -> None:
        self._state = state.resolve()

    @property
    def pid(self) -> int | None:
        """The master's process id, where it runs."""
        return running(self._state / "nginx.pid")

    def start(self, site: Site) -> None:
        """Start nginx, or let a running one take on the site and its TorchServes' new tokens.

        Raises:
            ProxyError: nginx is not installed, or refuses the configuration.
            OSError: a key file cannot be read.
        """
        self._write(site)
        if self.pid is None:
            self._run()
        else:
            self._run("-s", "reload")

    def run(self, site: Site) -> None:
        """Become nginx in the foreground, its access log on standard output.

        Raises as `start` does.
        """
        self._write(site)
        log = self._state / "logs" / "access.log"
        log.unlink(missing_ok=True)
        log.symlink_to("/dev/stdout")
        command = self._command(directives="daemon off;")
        os.execv(command[0], command)

    def stop(self) -> None:
        """Stop nginx, if it runs, once it has answered the requests that it has.

        Raises:
            ProxyError: it still runs after 35 s.
        """
        if self.pid is None:
            return
        self._run("-s", "quit")
        deadline = time.monotonic() + STOP_TIMEOUT
        while self.pid is not None:
            if time.monotonic() > deadline:
                raise ProxyError(f"nginx {self.pid} does not stop.")
            time.sleep(0.05)

    def _write(self, site: Site) -> None:
        """Write the configuration, tokens included, for the user alone, and check it."""
        for folder in (self._state, self._state / "logs", self._state / "temp"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in self._state.glob("torchserve-*.conf"):
            old.unlink()
        sockets = []
        for number, upstream in enumerate(site.upstreams, start=1):
            name = f"torchserve-{number}"
            sockets.append(self._state / f"{name}.sock")
            self._render(
                "torchserve.conf",
                f"{name}.conf",
                name=name,
                address=urlsplit(upstream.url).netloc,
                socket=str(sockets[-1]),
                authorization=Client(upstream.url, "", upstream.key_file).token("inference")[
                    "Authorization"
                ],
            )
        limits = "max_conns=48 max_fails=3 fail_timeout=2s"
        servers = [f"server unix:{socket} {limits};" for socket in sockets]
        self._render(
            "nginx.conf",
            "nginx.conf",
            listen=site.listen,
            model=site.model,
            rate=site.rate,
            trusted="\n    ".join(f"set_real_ip_from {network};" for network in site.trusted),
            servers="\n        ".join(servers),
        )
        if self.pid is None:
            for socket in self._state.glob("*.sock"):
                socket.unlink()
        self._run("-t")

    def _render(self, template: str, file: str, /, **values: str) -> None:
        text = (paths.CONFIG / "nginx" / template).read_text(encoding="utf-8")
        path = self._state / file
        path.touch(mode=0o600)
        path.write_text(_Template(text).substitute(values), encoding="utf-8")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(self._command(*arguments), capture_output=True, text=True)
        if done.returncode != 0:
            raise ProxyError(done.stderr.strip())

    def _command(self, *arguments: str, directives: str = "") -> list[str]:
        """Where root starts nginx, its workers stay root, as the folder is closed to others."""
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if nginx is None:
            raise ProxyError("nginx is not installed; on Debian: apt-get install nginx.")
        if os.geteuid() == 0:
            directives += "user root;"
        return [
            *(nginx, "-p", str(self._state), "-c", str(self._state / "nginx.conf")),
            *("-e", "logs/error.log", "-g", directives),
            *arguments,
        ]


class _Template(string.Template):
    """Placeholders that nginx's own `$variables` do not meet."""

    delimiter = "@"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.proxy", description=__doc__)
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
        command.add_argument("--model", default=Site.model, help="the model that / shows")
        command.add_argument("--rate", default=Site.rate, help="requests of one client")
        command.add_argument(
            "--trust",
            nargs="+",
            default=[],
            metavar="NETWORK",
            help="load balancers whose X-Forwarded-For names the client",
        )
    args = parser.parse_args()
    proxy = Proxy(args.state)
    try:
        if args.command == "stop":
            proxy.stop()
            return 0
        upstreams = tuple(Upstream(url, Path(key_file)) for url, key_file in args.upstream)
        site = Site(upstreams, args.listen, args.model, args.rate, tuple(args.trust))
        if args.command == "run":
            proxy.run(site)
        proxy.start(site)
    except (ProxyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"nginx answers at http://{site.listen}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
