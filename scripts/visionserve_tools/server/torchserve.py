"""Configure, start, check and stop one TorchServe."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil

from visionserve.config import ModelConfig
from visionserve_tools import advice, paths
from visionserve_tools.archive.hashes import admit
from visionserve_tools.archive.manifest import Archive, ArchiveError, read_config
from visionserve_tools.server import java, processes, snapshots
from visionserve_tools.server.client import Client
from visionserve_tools.server.private import make_private
from visionserve_tools.server.properties import (
    ADDRESSES,
    check_properties,
    check_values,
    read_properties,
    write_properties,
)
from visionserve_tools.server.snapshots import Models, each
from visionserve_tools.server.started import Started, StateError

START_TIMEOUT = 120
STOP_TIMEOUT = 60
# A Unix socket's path has at most 107 bytes; TorchServe's longest is `TEMP/.ts.sock.65535`.
LONGEST_TEMP = 107 - len("/.ts.sock.65535")
GRPC = {"grpc_inference_port": "7070", "grpc_management_port": "7071"}


class StartError(Exception):
    """TorchServe did not become ready; the message says why in a few lines."""


class NotRunningError(Exception):
    """No server that uses a state folder, its one argument, runs."""

    def __str__(self) -> str:
        """Tell how to start one, or which other profile's server runs."""
        return _not_running(self.args[0])


class TorchServe:
    """A server of one profile, with its state in a folder that only this user can read.

    The folder holds the effective `config.properties`, `key_file.json` and `logs/`. In `store/`
    it holds copies of the archives, which are checked after they are copied. In `tmp/` it holds
    sockets and unpacked archives, so that they are safe from other servers and from programs that
    clean the machine's temporary folder.

    Args:
        profile: the name of a folder in `config/`.
        state: the folder for the state.
        store: the folder that archives are copied from.
        overrides: properties that replace the profile's, such as addresses on free ports.
        unrecorded: whether the server accepts archives that were not built here; with None, only
            the profile `local` does.

    Raises:
        UnknownPropertyError: TorchServe has no property of an override's name.
        ValueError: an address cannot be used; see `server.properties.check_values`.
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
        properties = read_properties(paths.profile(profile) / "config.properties")
        needed = ModelConfig.of(paths.profile(profile)).handler.max_body_bytes
        allowed = int(properties.get("max_request_size", 0))
        properties["max_request_size"] = str(max(needed, allowed))
        properties |= overrides or {}
        for key in ADDRESSES:
            if (address := properties.get(key)) is None:
                raise ValueError(f"{paths.profile(profile)}/config.properties: lacks {key}.")
            if re.match("unix:[^/]", address):
                properties[key] = f"unix:{self.temp / address.removeprefix('unix:')}"
        check_values(properties)
        self.properties = properties | {
            "model_store": str(self.admitted),
            "metrics_config": str(paths.CONFIG / "metrics.yaml"),
        }

    @classmethod
    def at(cls, state: Path) -> "TorchServe":
        """Return the running server that uses a state folder.

        Raises:
            NotRunningError: no such server runs.
            StateError: the folder does not tell, as a file of it is damaged.
        """
        try:
            kept = Started.read(state)
        except OSError:
            raise NotRunningError(state) from None
        server = cls(kept.profile, state, Path(kept.store), unrecorded=kept.unrecorded)
        if server.process is None:
            raise NotRunningError(state)
        return server

    @property
    def client(self) -> Client:
        """A client with the server's addresses and keys; the server must have been started."""
        return client_of(self.state)

    @property
    def process(self) -> psutil.Process | None:
        """The frontend's process, or None if it does not run."""
        configured = f"-f {self.state / 'config.properties'}"
        return processes.find("java", "org.pytorch.serve.ModelServer", configured)

    @property
    def pid(self) -> int | None:
        """The frontend's process id, or None if it does not run."""
        return None if (process := self.process) is None else process.pid

    @property
    def needs_token(self) -> bool:
        """Whether the server's APIs ask for tokens."""
        return self.properties.get("disable_token_authorization") != "true"

    def runs(self, models: Models, archives: Mapping[str, str]) -> bool:
        """Tell whether the server runs with its properties and serves exactly these versions.

        Args:
            models: the versions, of which only the archives and defaults count.
            archives: the SHA-256 of each archive in hex, by file name.
        """
        try:
            kept = Started.read(self.state)
            properties = read_properties(self.state / "config.properties")
        except (OSError, ValueError, TypeError):
            return False
        properties.pop(snapshots.PROPERTY, None)
        same = all(kept.archives.get(file) == digest for file, digest in archives.items())
        if not same or properties != self.properties or self.process is None:
            return False
        try:
            served = [self.client.describe(model, version)[0] for model, version, _ in each(models)]
        except (OSError, KeyError, ValueError):
            return False
        recorded = snapshots.last(self.state)
        return (
            recorded is not None
            and snapshots.shape(recorded) == snapshots.shape(models)
            and all(
                not entry["minWorkers"]
                or any(worker["status"] == "READY" for worker in entry["workers"])
                for entry in served
            )
        )

    def start(self, archives: Sequence[str], asked: Mapping[str, str] | None = None) -> None:
        """Start the server with archives of its store, and wait until it is ready.

        Args:
            archives: each archive as `FILE` or `NAME=FILE`.
            asked: see `Started`.

        Raises:
            StartError: the server ended, a worker could not load its archive, or the server was
                not ready in time.
            HashError: an archive was changed since it was built, or was not built here.
            ForeignFileError: the state folder holds another user's file or a symbolic link.
        """
        self._prepare()
        admitted = self._admit_all(archive.rpartition("=")[2] for archive in archives)
        kept = self._started(admitted, asked or {})
        self._launch(kept, len(admitted), self.properties, "--models", *archives)

    def restore(self, models: Models | None = None, asked: Mapping[str, str] | None = None) -> None:
        """Start the server with the models, versions, defaults and workers that it had at its end.

        The archives are those of the store now. Where one was built again since, the numbers of its
        `model-config.yaml` count, except those that were set by hand, as a number of workers.

        Args:
            models: what to serve, with TorchServe's entries; None for what the snapshots say.
            asked: see `Started`; None for those of the last start.

        Raises:
            FileNotFoundError: TorchServe never wrote a snapshot.
            StartError, HashError, ForeignFileError: for the same reasons as in `start`.
            ArchiveError: a file is no archive.
        """
        self._prepare()
        if models is None and (models := snapshots.last(self.state)) is None:
            raise FileNotFoundError(f"{self.state}/logs/config holds no snapshot.")
        if asked is None:
            with suppress(OSError, StateError):
                asked = Started.read(self.state).asked
        names = list(dict.fromkeys(entry["marName"] for _, _, entry in each(models)))
        configs = {}
        for name in names:
            with suppress(ArchiveError):
                configs[name] = read_config(self.admitted / name)
        admitted = self._admit_all(names)
        for _, _, entry in each(models):
            if old := configs.get(entry["marName"]):
                snapshots.follow(entry, old, read_config(self.admitted / entry["marName"]))
        wanted = self.properties | {snapshots.PROPERTY: snapshots.text(models)}
        kept = self._started(admitted, asked or {})
        self._launch(kept, len(list(each(models))), wanted)

    def _admit_all(self, files: Iterable[str]) -> dict[str, str]:
        """Take the store's archives in place of those there were, and return each one's SHA-256."""
        shutil.rmtree(self.admitted, ignore_errors=True)
        self.admitted.mkdir(mode=0o700)
        return {file: self.admit(file) for file in files}

    def _started(self, archives: dict[str, str], asked: Mapping[str, str]) -> Started:
        kept = {file: name for file, name in asked.items() if file in archives}
        return Started(
            profile=self.profile,
            store=str(self.store),
            archives=archives,
            unrecorded=self._unrecorded,
            asked=kept,
        )

    def _keep(self, started: Started) -> None:
        (self.state / "server.json").write_text(started.model_dump_json())

    def admit(self, file: str) -> str:
        """Copy an archive from the store to the folder that the server loads from, and check it.

        Returns:
            The archive's SHA-256 in hex.

        Raises:
            HashError: the archive was changed since it was built, or was not built here.
            OSError: the archive cannot be read.
        """
        if Path(file).name != file:
            raise FileNotFoundError(f"{file}: give the file name of an archive in {self.store}.")
        self.admitted.mkdir(mode=0o700, exist_ok=True)
        return admit(self.store / file, self.admitted, self._unrecorded)

    def register(self, file: str, workers: int | None = None) -> Archive:
        """Check an archive of the store, register it, and wait for its workers.

        The number of workers is set after the registration, because TorchServe 0.12 starts as many
        as the archive's own `minWorkers` says, whatever the request asks for.

        Args:
            file: the archive's file name.
            workers: the number of workers; None keeps the archive's own number.

        Raises:
            HashError, OSError: for the same reasons as in `admit`.
            ArchiveError: the file is no model archive.
            requests.RequestException: the server refuses the archive or cannot be reached.
        """
        digest = self.admit(file)
        archive = Archive.read(self.admitted / file)
        client = self.client
        client.register(file)
        if workers is not None:
            client.scale(archive.model, workers, workers, archive.version)
        started = Started.read(self.state)
        archives = started.archives | {file: digest}
        self._keep(started.model_copy(update={"archives": archives}))
        return archive

    def stop(self) -> bool:
        """Stop the server, and wait until it and its workers have ended.

        It is told to end, and killed once it has closed all connections, or after a minute.

        Returns:
            Whether the server ran.
        """
        process = self.process
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                workers = process.children()
                process.terminate()
                with suppress(psutil.TimeoutExpired):
                    processes.wait(process, STOP_TIMEOUT, until=lambda: _is_done(process))
                # TorchServe kills its workers as well, after the wait.
                for one in (process, *workers):
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                        processes.wait(one, STOP_TIMEOUT)
        (self.state / "key_file.json").unlink(missing_ok=True)
        shutil.rmtree(self.temp, ignore_errors=True)
        return process is not None

    def check_path(self) -> None:
        """Check that Java can name TorchServe's classes and the state folder.

        Raises:
            StartError: it cannot; the message says by which character.
        """
        # Java 17 decodes no other characters in a class path, to which the working folder belongs.
        beyond = "[\ud800-\udfff\U00010000-\U0010ffff]"
        packages = sysconfig.get_path("purelib")
        found = re.search(f":|{beyond}", packages) or re.search(beyond, str(self.state))
        if found:
            shown = os.fsencode(found[0]).decode(errors="replace")
            reason = f"Java finds no classes by {shown} in a path: rename it."
            raise StartError(f"{found.string}: {reason}")

    def check_ports(self) -> None:
        """Check that no other process listens on one of the server's ports.

        Raises:
            StartError: another process does; the message names it.
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
        # The kernel chooses a free port in place of 0.
        return [port for port in (*(address.port for address in addresses), *grpc) if port]

    def _prepare(self) -> None:
        self.check_path()
        make_private(self.state)
        self.check_ports()
        shutil.rmtree(self.temp, ignore_errors=True)
        self.temp.mkdir(mode=0o700)

    def _launch(
        self, started: Started, versions: int, wanted: Mapping[str, str], *arguments: str
    ) -> None:
        """Start the server, and wait until it serves so many versions.

        Raises:
            StartError: it does not. No snapshot tells of this start.
        """
        properties = self.state / "config.properties"
        write_properties(properties, wanted)
        self._keep(started)
        (self.state / "key_file.json").unlink(missing_ok=True)
        snapshots.date(self.state)
        before = snapshots.files(self.state)
        earlier = {log: log.stat().st_size for log in (self.state / "logs").glob("*_log.log")}
        with (self.state / "console.log").open("w") as console:
            make_private(self.state)
            self._run(
                *("--start", "--ts-config", str(properties)),
                *("--model-store", str(self.admitted), *arguments),
                output=console.fileno(),
            )
        try:
            self._wait(earlier, versions)
        except StartError:
            for file in {*snapshots.files(self.state)}.difference(before):
                file.unlink()
            raise

    def _run(self, *arguments: str, output: int) -> None:
        """Run the `torchserve` command, with files that only this user can read.

        The frontend gets two malloc arenas, which suffice because Java allocates little outside
        its heap. With glibc's default of eight arenas for each core, its memory would grow until
        its threads have used them all.

        The environment variables of Python and TorchServe are not passed on. An inherited
        PYTHONPATH would come before the archives' folders in the workers, and an inherited
        TS_CONFIG_FILE would replace the configuration.

        Java's encoding of paths is that of the locale, so the server gets one that knows every
        letter. The file of log4j is named as a URL, which `torchserve --log-config` does not do.
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
                "LC_ALL": "C.UTF-8",
                "LOG_LOCATION": "logs",
                "LOG4J_CONFIGURATION_FILE": (paths.CONFIG / "log4j2.xml").as_uri(),
                "MALLOC_ARENA_MAX": "2",
            },
            stdout=output,
            stderr=output,
            umask=0o077,
            start_new_session=True,
        )

    def _wait(self, earlier: Mapping[Path, int], archives: int) -> None:
        """Wait until the started process itself listens on all of its ports and is ready.

        TorchServe registers the archives before it listens, and goes on without those that it
        cannot read.

        Args:
            earlier: the lengths of the logs before the start.
            archives: how many archives have to be registered.
        """
        deadline = time.monotonic() + START_TIMEOUT
        client, process = self.client, self.process
        while time.monotonic() < deadline and process is not None and processes.runs(process):
            if processes.listens(process, *self._ports):
                with suppress(OSError, KeyError):
                    if sum(len(client.describe(model)) for model in client.models()) < archives:
                        break
                if client.ready():
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
        """Return the text added to the console and the logs since the logs had these lengths."""
        gained = []
        for log in (self.state / "console.log", *sorted((self.state / "logs").glob("*_log.log"))):
            with log.open("rb") as file:
                file.seek(earlier.get(log, 0))
                gained.append(file.read().decode(errors="replace"))
        return "\n".join(gained)


def _is_done(process: psutil.Process) -> bool:
    """Tell whether a frontend that was told to end has closed all connections, and idles since.

    It then waits for two seconds that nobody needs, as netty's event loops do before they end.
    """
    for _ in range(10):
        if process.net_connections("inet"):
            return False
        time.sleep(0.02)
    return True


def client_of(state: Path, retries: int = 0) -> Client:
    """Return a client for the server that was last started with a state folder.

    Raises:
        FileNotFoundError: no server was started with it.
        StateError: its properties cannot be read.
    """
    file = state / "config.properties"
    try:
        properties = read_properties(file)
        management, inference = (
            properties[f"{api}_address"] for api in ("management", "inference")
        )
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError):
        raise StateError(file) from None
    open_to_all = properties.get("disable_token_authorization") == "true"
    if management.startswith("unix:"):
        management = f"http+unix://{quote(management.removeprefix('unix:'), safe='')}"
    return Client(
        inference,
        management,
        None if open_to_all else state / "key_file.json",
        retries,
    )


def connect(state: Path, retries: int = 0) -> Client:
    """Return a client for the running server that uses a state folder.

    Raises:
        NotRunningError: no such server runs.
    """
    TorchServe.at(state)
    return client_of(state, retries)


def _temp(state: Path) -> Path:
    """Return the server's temporary folder.

    It lies in the state folder, unless that path is too long for a Unix socket.
    """
    temp = state / "tmp"
    if len(os.fsencode(temp)) <= LONGEST_TEMP:
        return temp
    short = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"torchserve-{os.geteuid()}-{short}"


def _not_running(state: Path) -> str:
    if state.parent == paths.STATE and state.name in paths.profiles():
        others = [
            profile
            for profile in paths.profiles()
            if profile != state.name
            and TorchServe(profile, paths.STATE / profile, Path()).process is not None
        ]
        told = f"No server of profile {state.name} runs"
        if others:
            return f"{told}, but one of {' and '.join(others)} does: --profile {others[0]}"
        return f"{told}: {advice.serve('profile', state.name)}"
    return f"{state}: no server runs."


def _name(pid: int | None) -> str:
    for profile in paths.profiles():
        if pid is not None and pid == TorchServe(profile, paths.STATE / profile, Path()).pid:
            return f"the server of profile {profile}: {advice.stop(profile)} ends it"
    return processes.describe(pid)


def _reason(log: str) -> str:
    """Return the last few lines of a log that name an error, without times and stack traces."""
    lines = [re.sub(r"^[\dT:,.-]+ \[.*?\] \S+ \S+( - )?", "", line) for line in log.splitlines()]
    named = re.compile(r"(Error|Exception)\b|Failed to load")
    telling = [line.strip() for line in lines if named.search(line)]
    # The exception that the worker ends by says again what the line before it has said.
    loading = " ".join(line for line in telling if line.startswith("Failed to load"))
    telling = [
        line
        for line in telling
        if not line.startswith("raise ")
        and not (loading and line.endswith("Unknown exception"))
        and line.partition("Error: ")[2] not in loading.split("exception ")[1:]
    ]
    # Log4j tells on the console which lines it could not write.
    chosen = [
        line for line in telling if not line.startswith("at ") and " main ERROR " not in line
    ] or lines
    return "\n".join(list(dict.fromkeys(line for line in chosen if line))[-5:])
