"""Configure, start, reload and stop one nginx in front of one or several TorchServes."""

import base64
import hashlib
import ipaddress
import os
import re
import resource
import secrets
import shutil
import signal
import string
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from pydantic import TypeAdapter

from visionserve.config import MEBIBYTE, HandlerConfig, ModelConfig, Options
from visionserve_tools import lock, paths
from visionserve_tools.kept import check_file, read_file
from visionserve_tools.server.canary import Canary
from visionserve_tools.server.processes import find, runs
from visionserve_tools.server.started import Started

START_TIMEOUT = 20
STOP_TIMEOUT = 40
MAKE_WAY_TIMEOUT = 5
LOG_BYTES = 100_000_000
MOST_FILES = 16_384
FILES_OF_A_CLIENT = 8
LUA = ("clock.lua", "form.lua", "turns.lua", "gate.lua")
DESCRIPTION = "openapi.json"
SITE = "site.json"
OUTAGE = "outage.html"
LOGS = ("access.log", "error.log")
ORIGIN = r"https?://([a-z\d.-]+|\[[\da-f:]+\])(:\d+)?"
# What a page may send: what `gate.lua` lets through.
HEADERS = (
    *("Accept", "Accept-Language", "Content-Encoding", "Content-Type", "Traceparent"),
    "Inference-Header-Content-Length",
    *(f"X-Classify-{name.replace('_', '-')}" for name in Options.model_fields),
)
MODULES = ("ndk_http_module", "ngx_http_lua_module", "ngx_stream_module")


class ProxyError(Exception):
    """Nginx is not installed, refuses its configuration, or does not start or stop."""


@dataclass(frozen=True)
class Upstream:
    """A TorchServe behind nginx.

    Attributes:
        url: address of its inference API, such as ``http://127.0.0.1:8080``.
        key_file: its `key_file.json`; nginx reads the inference token from it for each request.
    """

    url: str
    key_file: Path


@dataclass(frozen=True)
class Site:
    """The settings that differ from one nginx to another.

    Attributes:
        upstreams: the TorchServes that nginx forwards requests to.
        listen: the address that clients use, in nginx's notation.
        probes: the address of `/ping` and `/metrics`, for health checks and monitoring.
        model: the model whose page `/` shows, and which `/ping` sends a request to.
        rate: the rate of requests that one client may send, in nginx's notation: ``20r/s``,
            ``30r/m``.
        trusted: networks of load balancers; nginx trusts the X-Forwarded-For that they send.
        origins: origins of other web pages that browsers may let ask.
        canaries: versions that answer a share of the clients; one of 0 % is none.
    """

    upstreams: tuple[Upstream, ...]
    listen: str = "127.0.0.1:8000"
    probes: str = "127.0.0.1:8001"
    model: str = "resnet18"
    rate: str = "20r/s"
    trusted: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    canaries: tuple[Canary, ...] = ()

    def check(self) -> None:
        """Raise `ProxyError` for a value that nginx would refuse or misread."""
        address = r"(\d+\.\d+\.\d+\.\d+|\[[0-9a-f:]+\]):\d+"
        url = r"http://[\w.:\[\]-]+:\d+"
        for name, value, pattern, example in (
            ("listen", self.listen, address, Site.listen),
            ("probes", self.probes, address, Site.listen),
            ("model", self.model, r"[\w.-]+", Site.model),
            ("rate", self.rate, r"[1-9]\d{0,6}r/[sm]", Site.rate),
            *(("upstream", one.url, url, "http://127.0.0.1:8080") for one in self.upstreams),
            *(("allow-origin", one, ORIGIN, "https://app.example") for one in self.origins),
        ):
            if not re.fullmatch(pattern, value, re.ASCII):
                raise ProxyError(f"{name}: {value!r} cannot be: give it as {example}.")
        for address in (
            self.listen,
            self.probes,
            *(urlsplit(u.url).netloc for u in self.upstreams),
        ):
            port = address.rpartition(":")[2]
            if len(port) > 5 or not 0 < int(port) < 65536:
                raise ProxyError(f"{address}: a port is a number from 1 to 65535.")
        for network in self.trusted:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                told = f"trust: {network!r} cannot be: give it as 10.0.0.0/8."
                raise ProxyError(told) from None
        models = [canary.model for canary in self.canaries]
        if doubled := {model for model in models if models.count(model) > 1}:
            raise ProxyError(f"canary: {min(doubled)} has several; a model has one.")

    def check_canaries(self) -> None:
        """Ask each server whether it has the canaries' versions; one that is away is not asked.

        Raises:
            ProxyError: one of them has not, or none can be asked.
        """
        import requests

        from visionserve_tools.server.client import Client

        for canary in filter(lambda one: one.share, self.canaries):
            model, version = canary.model, canary.version
            statuses = {}
            for upstream in self.upstreams:
                client = Client(upstream.url, "", upstream.key_file)
                with suppress(requests.RequestException):
                    statuses[upstream.url] = client.readiness(model, version)
            fault = "" if statuses else "No server can be asked"
            for url, status in statuses.items():
                if status == 404:
                    fault = f"{url} has no {model} {version}: visionserve manage register adds it"
                elif status != 200:
                    fault = f"{url} does not answer for {model} {version} ({status})"
            if fault:
                raise ProxyError(f"{fault}. --canary {model}={version}:0% goes without it.")


class Proxy:
    """An nginx whose configuration, sockets, logs and temporary files lie in one folder.

    nginx runs in that folder, and its configuration uses paths relative to it. So its processes are
    known by their working folder, also the workers that a killed master leaves and that hold its
    ports. One call at a time works in the folder; another one waits.

    Args:
        state: the folder.
    """

    def __init__(self, state: Path) -> None:
        self._state = state.resolve()

    @property
    def pid(self) -> int | None:
        """The process id of nginx's master process, or None if it does not run."""
        master = self._master()
        return master.pid if master else None

    @property
    def site(self) -> Site:
        """The site that nginx was started with last.

        Raises:
            ProxyError: there is none, or its file cannot be read.
        """
        try:
            kept: Site = TypeAdapter(Site).validate_json(read_file(self._state / SITE))
            return kept
        except FileNotFoundError:
            raise ProxyError("Give --upstream: no nginx was started here before.") from None
        except (OSError, ValueError):
            raise ProxyError(f"{self._state / SITE}: is damaged; give --upstream.") from None

    def start(self, site: Site) -> None:
        """Start nginx, or reload a running one, and wait until it serves the site.

        What is left of an nginx whose master died, or was told to end, answers what it has and
        takes no more requests.

        Raises:
            ProxyError: nginx is not installed, refuses the configuration, or cannot use it, for
                example because another process has its port.
            OSError: a key file cannot be read.
        """
        with self.started(site):
            pass

    @contextmanager
    def started(self, site: Site) -> Iterator[None]:
        """Start nginx as `start` does; no other call changes it until the block ends."""
        with self._alone(site):
            self._start(site)
            yield

    @contextmanager
    def shifted(self, site: Site) -> Iterator[None]:
        """Give a running nginx the canaries of a site, which it reads for each request.

        It keeps its configuration, and all of its connections.

        Raises:
            ProxyError, OSError: as `start`.
        """
        with self._alone(site):
            site.check_canaries()
            check_file(self._state / SITE)
            self._keep_site(site)
            yield

    def _start(self, site: Site) -> None:
        earlier = self._identity
        identity = self._write(site)
        before = self._workers()
        logged = len(self._logged())
        left = self._left()
        if master := self._master():
            _signal([master], signal.SIGHUP)
        else:
            self._make_way(left)
            self._run()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers_as(identity, before):
            faults = re.findall(r"\[emerg\] \S+ (.*)", self._logged()[logged:])
            if time.monotonic() > deadline or any("still could not" in fault for fault in faults):
                cause = faults[0] if faults else f"no answer in {START_TIMEOUT} s"
                raise ProxyError(f"nginx goes on with its earlier configuration: {cause}.")
            time.sleep(0.05)
        _end(left)
        self._keep_keys(identity, earlier)
        self._keep_site(site)

    def run(self, site: Site) -> None:
        """Replace this process with nginx, which logs to standard output and standard error.

        It raises the same errors as `start`, and `ProxyError` if an nginx runs in the folder.
        """
        with self._alone(site):
            if master := self._master():
                raise ProxyError(
                    f"nginx {master.pid} runs already: visionserve proxy stop ends it."
                )
            self._run_here(site)

    def _run_here(self, site: Site) -> None:
        identity = self._write(site)
        self._make_way(left := self._left())
        _end(left)
        self._keep_keys(identity)
        self._keep_site(site)
        command = self._command(directives="daemon off;")
        for stream, name in enumerate(LOGS, start=1):
            log = self._state / "logs" / name
            log.unlink(missing_ok=True)
            log.symlink_to(f"/proc/self/fd/{stream}")
            # Nginx opens the stream by its path. That fails if the stream is another user's file
            # or a socket, so nginx gets a pipe, which it can always open, and `cat` copies it.
            copy = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stream)
            assert copy.stdin
            os.dup2(copy.stdin.fileno(), stream)
        os.chdir(self._state)
        os.execv(command[0], command)

    def stop(self) -> str:
        """Stop nginx, if it runs, after it has completed its current requests.

        Returns:
            What was done, for the user.

        Raises:
            ProxyError: nginx still runs after 40 s.
        """
        if not self._state.exists():
            return "No nginx ran."
        with lock.alone(self._state):
            master, running = self._master(), self._processes()
            if master is None and not running:
                return "No nginx ran."
            _end([master] if master else [])
            _end(left := self._processes())
        if master is None:
            ended = ", ".join(str(process.pid) for process in running)
            return f"Stopped nginx: its master had died; {ended} went on without it."
        also = f", and {len(left)} that an earlier one had left" if left else ""
        return f"Stopped nginx (process {master.pid}{also})."

    def status(self) -> str:
        """Tell whether nginx runs, and where it answers, for the user."""
        if (pid := self.pid) is None:
            return "stopped"
        with suppress(OSError, ValueError):
            text = read_file(self._state / "nginx.conf").decode()
            site, probes = re.findall(r"^ *listen ([^u].*:\d+);", text, re.MULTILINE)
            return f"runs at http://{site}, probes at http://{probes}, process {pid}"
        return f"runs, process {pid}"

    def _logged(self) -> str:
        """Return the log of errors; nothing where `run` has it go to the streams of its own."""
        log = self._state / "logs" / "error.log"
        has_it = log.exists() and not log.is_symlink()
        return read_file(log).decode(errors="replace") if has_it else ""

    @contextmanager
    def _alone(self, site: Site) -> Iterator[None]:
        site.check()
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state.chmod(0o700)
        with lock.alone(self._state):
            yield

    def _master(self) -> psutil.Process | None:
        """Return the master that takes requests; one that was told to end listens no more."""
        master = find("nginx", "master process", f"-c {self._state}/nginx.conf")
        return master if master and _listens(master) else None

    def _processes(self) -> list[psutil.Process]:
        """Return all of nginx's processes that work in the folder, whatever their parents."""
        found = []
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == "nginx":
                with suppress(OSError):  # It has ended, or is another user's.
                    if Path(f"/proc/{process.pid}/cwd").samefile(self._state):
                        found.append(process)
        return found

    def _left(self) -> list[psutil.Process]:
        """Return the processes that belong to no master that takes requests."""
        master = self._master()
        family = [master, *master.children()] if master else []
        return [process for process in self._processes() if process not in family]

    def _make_way(self, left: list[psutil.Process]) -> None:
        """Have what is left of another nginx give up its ports, and remove its sockets.

        It still answers what it has.
        """
        _signal(left, signal.SIGQUIT)
        deadline = time.monotonic() + MAKE_WAY_TIMEOUT
        while any(map(_listens, left)) and time.monotonic() < deadline:
            time.sleep(0.02)
        _signal([process for process in left if _listens(process)], signal.SIGKILL)
        for socket in self._state.glob("*.sock"):
            socket.unlink()

    def _workers(self) -> list[psutil.Process]:
        # The master of `run` has other children, too, which copy its logs.
        nginxes, master = self._processes(), self._master()
        return [child for child in master.children() if child in nginxes] if master else []

    @property
    def _identity(self) -> str:
        """The identity of the configuration whose workers started last."""
        file = self._state / "identity"
        return read_file(file).decode(errors="replace") if file.exists() else ""

    def _answers_as(self, identity: str, before: list[psutil.Process]) -> bool:
        """Tell whether workers of this configuration run and no earlier worker takes requests."""
        if self._identity != identity:
            return False
        for worker in before:
            with suppress(psutil.NoSuchProcess):
                if "shutting down" not in " ".join(worker.cmdline()):
                    return False
        return True

    def _write(self, site: Site) -> str:
        """Write the configuration so that only this user can read it, and have nginx check it.

        Returns:
            The configuration's identity, which its workers write to a file once they run.
        """
        for folder in (self._state, self._state / "logs", self._state / "temp"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        # A missing key file is told before anything of an earlier configuration is changed.
        for upstream in site.upstreams:
            read_file(upstream.key_file)
        site.check_canaries()
        for name in ("identity", "nginx.conf", DESCRIPTION, OUTAGE, SITE, *LUA):
            check_file(self._state / name)
        for log in LOGS:
            # `run` has links there, to this process's streams.
            if not (file := self._state / "logs" / log).is_symlink():
                check_file(file)
        identity = secrets.token_hex(8)
        keys = self._state / f"keys-{identity}"
        keys.mkdir(mode=0o700)
        for old in self._state.glob("torchserve-*.conf"):
            old.unlink()
        names = [f"torchserve-{number}" for number in range(1, len(site.upstreams) + 1)]
        each = []
        for name, upstream in zip(names, site.upstreams, strict=True):
            (keys / f"{name}.key").symlink_to(upstream.key_file.resolve())
            host, _, port = urlsplit(upstream.url).netloc.rpartition(":")
            self._render("torchserve.conf", f"{name}.conf", name=name, host=host, port=port)
            each.append(f'{{"{name}", "{host}", {port}}}')
        limits = "max_conns=48 max_fails=3 fail_timeout=2s"
        files = min(MOST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        for module in LUA:
            self._render(module, module)
        shutil.copyfile(paths.CONFIG / DESCRIPTION, self._state / DESCRIPTION)
        shutil.copyfile(paths.CONFIG / "nginx" / OUTAGE, self._state / OUTAGE)
        self._render(
            "nginx.conf",
            "nginx.conf",
            modules=self._modules(),
            files=str(files),
            clients=str(min(1024, files // FILES_OF_A_CLIENT)),
            identity=identity,
            log_bytes=str(LOG_BYTES),
            listen=site.listen,
            probes=site.probes,
            model=site.model,
            rate=site.rate,
            version=version("visionserve"),
            balancers=_lines("{} 1;", site.trusted),
            trusted=_lines("set_real_ip_from {};", site.trusted),
            origins=_lines('"{0}" "{0}";', site.origins),
            varies="Origin" if site.origins else "",
            headers=", ".join(HEADERS),
            style=_style_of(paths.CONFIG / "nginx" / OUTAGE),
            names=", ".join(f'"{name}"' for name in names),
            each=", ".join(each),
            body=str(self._body(site) // MEBIBYTE),
            servers=_lines(f"server unix:{{}}.sock {limits};", names),
        )
        self._run("-t")
        return identity

    @staticmethod
    def _body(site: Site) -> int:
        """Return the largest body, in bytes, that the upstreams' profiles need.

        A state folder tells its server's profile; where there is none, it is the default.
        """
        sizes = [HandlerConfig().max_body_bytes]
        for upstream in site.upstreams:
            with suppress(OSError, ValueError):
                profile = Started.read(upstream.key_file.parent).profile
                sizes.append(ModelConfig.of(paths.profile(profile)).handler.max_body_bytes)
        return max(sizes)

    def _keep_keys(self, *identities: str) -> None:
        """Remove the links to keys, except those of the configurations whose workers still run."""
        for folder in self._state.glob("keys-*"):
            if folder.name.removeprefix("keys-") not in identities:
                shutil.rmtree(folder)

    def _keep_site(self, site: Site) -> None:
        """Write what the site is, for later starts and for `gate.lua`, which reads the canaries."""
        with lock.whole(self._state / SITE) as file:
            file.write(TypeAdapter(Site).dump_json(site))

    def _render(self, template: str, file: str, /, **values: str) -> None:
        text = (paths.CONFIG / "nginx" / template).read_text(encoding="utf-8")
        path = self._state / file
        path.touch(mode=0o600)
        path.write_text(_Template(text).substitute(values), encoding="utf-8")

    def _modules(self) -> str:
        """Return the folder of nginx's modules, after a check that the needed ones are there."""
        told = subprocess.run([self._nginx(), "-V"], capture_output=True, text=True).stderr
        found = re.search(r"--modules-path=(\S+)", told)
        folder = Path(found[1]) if found else Path("/usr/lib/nginx/modules")
        if not all((folder / f"{module}.so").exists() for module in MODULES):
            raise ProxyError(
                "nginx lacks its Lua or its stream module; on Debian: "
                "apt-get install libnginx-mod-http-lua libnginx-mod-stream."
            )
        return str(folder)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            self._command(*arguments), cwd=self._state, capture_output=True, text=True
        )
        if done.returncode != 0:
            # Such as `nginx: [emerg] …`; what follows it says only that the test failed.
            told = done.stderr.strip().splitlines() or [f"nginx ended with {done.returncode}."]
            raise ProxyError(next((line for line in told if "[emerg]" in line), told[0]))

    @staticmethod
    def _nginx() -> str:
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if nginx is None:
            raise ProxyError("nginx is not installed; on Debian: apt-get install nginx.")
        return nginx

    def _command(self, *arguments: str, directives: str = "") -> list[str]:
        """Return nginx's command line.

        If root starts nginx, its workers also run as root, because no other user can read the
        folder.
        """
        if os.geteuid() == 0:
            directives += "user root;"
        return [
            *(self._nginx(), "-p", str(self._state), "-c", str(self._state / "nginx.conf")),
            *("-e", "logs/error.log", "-g", directives),
            *arguments,
        ]


def _listens(process: psutil.Process) -> bool:
    try:
        return any(c.status == psutil.CONN_LISTEN for c in process.net_connections())
    except psutil.NoSuchProcess:
        return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _end(processes: list[psutil.Process]) -> None:
    """Have processes of nginx complete their requests and end.

    Raises:
        ProxyError: one still runs after 40 s.
    """
    _signal(processes, signal.SIGQUIT)
    deadline = time.monotonic() + STOP_TIMEOUT
    while alive := [process.pid for process in processes if runs(process)]:
        if time.monotonic() > deadline:
            raise ProxyError(f"nginx {alive[0]} does not stop; kill -9 {alive[0]} ends it.")
        time.sleep(0.05)


def _style_of(page: Path) -> str:
    """Return the name that a policy gives a page's inline style: its hash."""
    found = re.search(r"<style>(.*?)</style>", page.read_text(encoding="utf-8"), re.DOTALL)
    digest = hashlib.sha256(found[1].encode() if found else b"").digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


class _Template(string.Template):
    """A template whose placeholders cannot be confused with nginx's own `$variables`."""

    delimiter = "@"


def _lines(form: str, values: tuple[str, ...] | list[str]) -> str:
    return "\n        ".join(form.format(value) for value in values)
