"""One TorchServe: its configuration, start, health and stop."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil

from scripts import paths
from scripts.archive.hashes import admit
from scripts.archive.manifest import Archive
from scripts.server import java, processes
from scripts.server.client import Client
from scripts.server.private import make_private
from scripts.server.properties import check_properties, read_properties

START_TIMEOUT = 120
STOP_TIMEOUT = 60
MAR_NAME = re.compile(r'"marName"\\?:\s*"([^"]+)"')
# A Unix socket's path has at most 107 bytes; TorchServe's longest is `TEMP/.ts.sock.65535`.
LONGEST_TEMP = 107 - len("/.ts.sock.65535")
ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC = {"grpc_inference_port": "7070", "grpc_management_port": "7071"}


class StartError(Exception):
    """TorchServe did not become ready; the message says why, in a few lines."""


class NotRunningError(Exception):
    """No server runs with the state folder."""


@dataclass(frozen=True)
class Started:
    """What a server was started with: `server.json` in its state folder.

    Attributes:
        profile: a folder of `config/`.
        store: the folder that its archives came from.
        archives: SHA-256 in hex of each, by file name, in the order given.
        unrecorded: whether archives without a record are taken.
    """

    profile: str
    store: str
    archives: dict[str, str]
    unrecorded: bool


class TorchServe:
    """A server of one profile, with its state in a folder.

    The folder is its user's alone. It holds the effective `config.properties`, `key_file.json`,
    `logs/`, `store/` with copies of the archives, which were checked there, and `tmp/` with
    sockets and unpacked archives, so that no cleaner of the machine's temporary folder and no
    other server meets them.

    Args:
        profile: a folder of `config/`.
        state: the folder.
        store: where archives come from.
        overrides: properties in place of the profile's, such as addresses on free ports.
        unrecorded: whether archives that were not built here are taken too; None leaves it to
            the profile: `local` takes them.

    Raises:
        UnknownPropertyError: an override is no property of TorchServe's.
    """

    def __init__(
        self,
        profile: str,
        state: Path,
        store: Path,
        overrides: Mapping[str, str] | None = None,
        unrecorded: bool | None = None,
    ) -> None:
        check_properties(overrides or {})
        self.profile = profile
        self.state = state.resolve()
        self.store = store
        self.temp = _temp(self.state)
        self._unrecorded = profile == "local" if unrecorded is None else unrecorded
        self.admitted = self.state / "store"
        properties = read_properties(paths.CONFIG / profile / "config.properties")
        properties |= overrides or {}
        for key in ADDRESSES:
            address = properties[key]
            if address.startswith("unix:") and not address.startswith("unix:/"):
                properties[key] = f"unix:{self.temp / address.removeprefix('unix:')}"
        self.properties = properties | {
            "model_store": str(self.admitted),
            "metrics_config": str(paths.CONFIG / "metrics.yaml"),
        }

    @classmethod
    def at(cls, state: Path) -> "TorchServe":
        """Return the server that runs with a state folder.

        Raises:
            NotRunningError: none does.
        """
        try:
            kept = Started(**json.loads((state / "server.json").read_bytes()))
        except OSError:
            raise NotRunningError(_not_running(state)) from None
        server = cls(kept.profile, state, Path(kept.store), unrecorded=kept.unrecorded)
        if server.process is None:
            raise NotRunningError(_not_running(state))
        return server

    @property
    def client(self) -> Client:
        """A client with the addresses and keys of the server, once it was started."""
        return client_of(self.state)

    @property
    def process(self) -> psutil.Process | None:
        """The frontend, where it runs."""
        configured = f"-f {self.state / 'config.properties'}"
        return processes.find("java", "org.pytorch.serve.ModelServer", configured)

    @property
    def pid(self) -> int | None:
        """The frontend's process id, where it runs."""
        return None if (process := self.process) is None else process.pid

    @property
    def needs_token(self) -> bool:
        """Whether its APIs ask for tokens."""
        return self.properties.get("disable_token_authorization") != "true"

    def runs(self, archives: Sequence[Archive]) -> bool:
        """Tell whether it runs with these properties and these very archives, and serves them."""
        try:
            kept = Started(**json.loads((self.state / "server.json").read_bytes()))
            properties = read_properties(self.state / "config.properties")
        except OSError:
            return False
        wanted = {archive.file: archive.sha256 for archive in archives}
        if (kept.archives, properties) != (wanted, self.properties) or self.process is None:
            return False
        try:
            versions = [self.client.describe(archive.model)[0] for archive in archives]
        except (OSError, KeyError):
            return False
        return all(
            any(worker["status"] == "READY" for worker in version["workers"])
            for version in versions
        )

    def start(self, archives: Sequence[str]) -> None:
        """Start the server with archives of its store, and wait until it is ready.

        Args:
            archives: `FILE` or `NAME=FILE` of each.

        Raises:
            StartError: it ended, a worker could not load its archive, or time ran out.
            HashError: an archive is not the one that was built.
            ForeignFileError: the state folder is not the user's alone.
        """
        self._prepare()
        shutil.rmtree(self.admitted, ignore_errors=True)
        self.admitted.mkdir(mode=0o700)
        files = [archive.rpartition("=")[2] for archive in archives]
        self._launch(
            {file: self.admit(file) for file in files}, self.properties, "--models", *archives
        )

    def restore(self) -> None:
        """Start the server with the models, versions and workers that it had when it ended.

        TorchServe writes them into `logs/config` at each change, also before `kill -9`.

        Raises:
            FileNotFoundError: it never wrote any.
            StartError, HashError, ForeignFileError: as `start` does.
        """
        self._prepare()
        for file in sorted((self.state / "logs" / "config").glob("*.cfg"), reverse=True):
            # A full disk leaves empty files.
            if snapshot := read_properties(file).get("model_snapshot"):
                for name in MAR_NAME.findall(snapshot):
                    if not (self.admitted / name).exists():
                        self.admit(name)
                self._launch({}, self.properties | {"model_snapshot": snapshot})
                return
        raise FileNotFoundError(f"{self.state}/logs/config holds no snapshot.")

    def admit(self, file: str) -> str:
        """Copy an archive of the store to where the server may load it from, and check it there.

        Returns:
            Its SHA-256 in hex.

        Raises:
            HashError: it was changed since it was built, or was not built here.
            OSError: it cannot be read.
        """
        if Path(file).name != file:
            raise FileNotFoundError(f"{file}: give the file name of an archive in {self.store}.")
        self.admitted.mkdir(mode=0o700, exist_ok=True)
        return admit(self.store / file, self.admitted, self._unrecorded)

    def register(self, file: str, workers: int | None = None) -> Archive:
        """Check an archive of the store, register it, and wait for its workers.

        TorchServe 0.12 gives an archive its own `minWorkers`, whatever else is asked for, so that
        it is scaled afterwards.

        Args:
            file: the archive's file name.
            workers: their number, as `Client.scale` sets it; None leaves it to the archive.

        Raises:
            HashError, OSError: as `admit` does.
            ArchiveError: it is no model archive.
            requests.RequestException: the server refuses it or cannot be reached.
        """
        self.admit(file)
        archive = Archive.read(self.admitted / file)
        client = self.client
        client.register(file)
        if workers is not None:
            client.scale(archive.model, workers, workers, archive.version)
        return archive

    def stop(self) -> bool:
        """Stop the server and wait for its end; after a minute, kill it.

        Returns:
            Whether it ran.
        """
        process = self.process
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait(STOP_TIMEOUT)
        (self.state / "key_file.json").unlink(missing_ok=True)
        shutil.rmtree(self.temp, ignore_errors=True)
        return process is not None

    def check_ports(self) -> None:
        """See that no other process listens where the server will.

        Raises:
            StartError: one does; the message names it.
        """
        own = self.pid
        taken = {
            port: owner
            for port, owner in processes.listeners(*self._ports).items()
            if owner is None or owner != own
        }
        by_owner: dict[int | None, list[str]] = {}
        for port in sorted(taken):
            by_owner.setdefault(taken[port], []).append(str(port))
        if by_owner:
            raise StartError(
                "\n".join(
                    f"Port {', '.join(ports)}: taken by {_name(owner)}."
                    for owner, ports in by_owner.items()
                )
            )

    @property
    def _ports(self) -> list[int]:
        addresses = [urlsplit(self.properties[key]) for key in ADDRESSES]
        grpc = [int(self.properties.get(key, default)) for key, default in GRPC.items()]
        return [address.port for address in addresses if address.port] + grpc

    def _prepare(self) -> None:
        make_private(self.state)
        self.check_ports()
        shutil.rmtree(self.temp, ignore_errors=True)
        self.temp.mkdir(mode=0o700)

    def _launch(self, archives: dict[str, str], wanted: Mapping[str, str], *arguments: str) -> None:
        properties = self.state / "config.properties"
        properties.write_text("".join(f"{k}={v}\n" for k, v in wanted.items()))
        kept = Started(self.profile, str(self.store), archives, self._unrecorded)
        (self.state / "server.json").write_text(json.dumps(asdict(kept)))
        (self.state / "key_file.json").unlink(missing_ok=True)
        earlier = {log: log.stat().st_size for log in (self.state / "logs").glob("*_log.log")}
        with (self.state / "console.log").open("w") as console:
            make_private(self.state)
            self._run(
                *("--start", "--ts-config", str(properties)),
                *("--log-config", str(paths.CONFIG / "log4j2.xml"), *arguments),
                output=console.fileno(),
            )
        self._wait(earlier)

    def _run(self, *arguments: str, output: int) -> None:
        """Run the `torchserve` command, whose scratch and key files are private to the user.

        Two malloc arenas suffice, as Java allocates little outside its heap; with glibc's eight
        for each core the frontend's memory grows for as long as threads find new ones. Variables
        of Python and TorchServe are left out: an inherited PYTHONPATH would come before the
        archives' folders in the workers, and TS_CONFIG_FILE in place of the configuration.
        """
        temp = str(self.temp)
        left_out = ("PYTHON", "TS_")
        inherited = {k: text for k, text in os.environ.items() if not k.startswith(left_out)}
        subprocess.run(
            [str(Path(sys.executable).with_name("torchserve")), *arguments],
            cwd=self.state,
            env={
                **inherited,
                "JAVA_HOME": str(java.java_home()),
                "TEMP": temp,
                "TMPDIR": temp,
                "LOG_LOCATION": str(self.state / "logs"),
                "MALLOC_ARENA_MAX": "2",
            },
            stdout=output,
            stderr=output,
            umask=0o077,
            start_new_session=True,
        )

    def _wait(self, earlier: Mapping[Path, int]) -> None:
        """Wait until the very process that was started answers at each of its ports."""
        deadline = time.monotonic() + START_TIMEOUT
        client = self.client
        while time.monotonic() < deadline and (process := self.process) is not None:
            if processes.listens(process, *self._ports) and client.ready():
                return
            if "Backend worker process died" in self._gained(earlier):
                break
            time.sleep(0.1)
        reason = _reason(self._gained(earlier))
        if time.monotonic() >= deadline:
            reason = f"It was not ready after {START_TIMEOUT} s."
        self.stop()
        raise StartError(f"TorchServe did not start.\n{reason}\nMore is in {self.state}/logs.")

    def _gained(self, earlier: Mapping[Path, int]) -> str:
        """Return what the console and the logs have gained since the logs had a length."""
        gained = []
        for log in (self.state / "console.log", *sorted((self.state / "logs").glob("*_log.log"))):
            with log.open("rb") as file:
                file.seek(earlier.get(log, 0))
                gained.append(file.read().decode(errors="replace"))
        return "\n".join(gained)


def client_of(state: Path, retries: int = 0) -> Client:
    """Return a client for the server that was started with a state folder.

    Raises:
        FileNotFoundError: none was.
    """
    properties = read_properties(state / "config.properties")
    open_to_all = properties.get("disable_token_authorization") == "true"
    management = properties["management_address"]
    if management.startswith("unix:"):
        management = f"http+unix://{quote(management.removeprefix('unix:'), safe='')}"
    return Client(
        properties["inference_address"],
        management,
        None if open_to_all else state / "key_file.json",
        retries,
    )


def connect(state: Path, retries: int = 0) -> Client:
    """Return a client for the server that runs with a state folder.

    Raises:
        NotRunningError: none does.
    """
    TorchServe.at(state)
    return client_of(state, retries)


def _temp(state: Path) -> Path:
    """Return the server's temporary folder: in its state folder, unless no socket fits there."""
    temp = state / "tmp"
    if len(os.fsencode(temp)) <= LONGEST_TEMP:
        return temp
    short = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"torchserve-{os.geteuid()}-{short}"


def _not_running(state: Path) -> str:
    if state.parent == paths.STATE and state.name in paths.profiles():
        return f"No server of profile {state.name} runs: make serve PROFILE={state.name}"
    return f"{state}: no server runs."


def _name(pid: int | None) -> str:
    for profile in paths.profiles():
        if pid is not None and pid == TorchServe(profile, paths.STATE / profile, Path()).pid:
            return f"the server of profile {profile}: make stop PROFILE={profile} ends it"
    return processes.describe(pid)


def _reason(log: str) -> str:
    """Return the last few lines that speak of an error, without their times and stack traces."""
    lines = [re.sub(r"^[\dT:,.-]+ \[.*?\] \S+ \S+( - )?", "", line) for line in log.splitlines()]
    telling = [line.strip() for line in lines if re.search(r"(Error|Exception)\b", line)]
    chosen = [line for line in telling if not line.startswith("at ")] or lines
    return "\n".join(list(dict.fromkeys(line for line in chosen if line))[-5:])
