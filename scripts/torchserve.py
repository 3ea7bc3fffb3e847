"""One TorchServe: its configuration, start, health and stop."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from scripts import java, paths, processes
from scripts.client import Client
from scripts.hashes import verify

START_TIMEOUT = 120
STOP_TIMEOUT = 60
MAR_NAME = re.compile(r'"marName"\\?:\s*"([^"]+)"')


class StartError(Exception):
    """TorchServe did not become ready; the message holds the end of its logs."""


class TorchServe:
    """A server of one profile, with its state in a folder.

    The folder holds the effective `config.properties`, `key_file.json` and `logs/`. Sockets,
    unpacked archives and the process id lie in a temporary folder of the server's own, so that
    servers on one machine do not meet.

    Args:
        profile: a folder of `config/`.
        state: the folder.
        store: the model store.
        overrides: properties in place of the profile's, such as addresses on free ports.
    """

    def __init__(
        self, profile: str, state: Path, store: Path, overrides: Mapping[str, str] | None = None
    ) -> None:
        self.state = state.resolve()
        self.store = store
        self._properties = read_properties(paths.CONFIG / profile / "config.properties")
        self._properties |= {
            "model_store": str(store),
            "metrics_config": str(paths.CONFIG / "metrics.yaml"),
        }
        self._properties |= overrides or {}
        self._temp = self.state / "tmp"

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

    def start(self, archives: Sequence[str]) -> None:
        """Start the server with archives of its store, and wait until it is ready.

        Raises:
            StartError: it ended, a worker could not load its archive, or time ran out.
            HashError: an archive is not the one that was built.
        """
        for archive in archives:
            verify(self.store / archive.rpartition("=")[2])
        self._launch(self._properties, "--models", *archives)

    def restore(self) -> None:
        """Start the server with the models, versions and workers that it had when it ended.

        TorchServe writes them into `logs/config` at each change, also before `kill -9`.

        Raises:
            FileNotFoundError: it never wrote any.
            StartError, HashError: as `start` does.
        """
        for file in sorted((self.state / "logs" / "config").glob("*.cfg"), reverse=True):
            # A full disk leaves empty files.
            if snapshot := read_properties(file).get("model_snapshot"):
                for archive in MAR_NAME.findall(snapshot):
                    verify(self.store / archive)
                self._launch(self._properties | {"model_snapshot": snapshot})
                return
        raise FileNotFoundError(f"{self.state}/logs/config holds no snapshot.")

    def _launch(self, wanted: Mapping[str, str], *arguments: str) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        self._temp.unlink(missing_ok=True)
        self._temp.symlink_to(tempfile.mkdtemp(prefix="torchserve-"))
        properties = self.state / "config.properties"
        properties.write_text("".join(f"{k}={v}\n" for k, v in wanted.items()))
        earlier = self._model_log.stat().st_size if self._model_log.exists() else 0
        with (self.state / "console.log").open("w") as console:
            self._run(
                *("--start", "--ts-config", str(properties)),
                *("--log-config", str(paths.CONFIG / "log4j2.xml"), *arguments),
                output=console.fileno(),
            )
        self._wait(earlier)

    def stop(self) -> None:
        """Stop the server, if it runs, and wait for its end; after a minute, kill it."""
        if (process := self.process) is not None:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT)
                except psutil.TimeoutExpired:
                    process.kill()
            (self.state / "key_file.json").unlink(missing_ok=True)
        if self._temp.is_symlink():
            shutil.rmtree(self._temp.resolve(), ignore_errors=True)
            self._temp.unlink()

    def _run(self, *arguments: str, output: int) -> None:
        """Run the `torchserve` command, whose scratch and key files are private to the user.

        Two malloc arenas suffice, as Java allocates little outside its heap; with glibc's eight
        for each core the frontend's memory grows for as long as threads find new ones.
        """
        temp = str(self._temp.resolve())
        subprocess.run(
            [str(Path(sys.executable).with_name("torchserve")), *arguments],
            cwd=self.state,
            env={
                **os.environ,
                "JAVA_HOME": str(java.java_home()),
                "TEMP": temp,
                "TMPDIR": temp,
                "LOG_LOCATION": str(self.state / "logs"),
                "MALLOC_ARENA_MAX": "2",
            },
            stdout=output,
            stderr=output,
            check=True,
            umask=0o077,
            start_new_session=True,
        )

    def _wait(self, earlier: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        client = self.client
        while time.monotonic() < deadline and self.pid is not None:
            if client.ready():
                return
            if self._worker_died(earlier):
                break
            time.sleep(0.1)
        message = f"TorchServe did not start.\n{self._log()}"
        self.stop()
        raise StartError(message)

    @property
    def _model_log(self) -> Path:
        return self.state / "logs" / "model_log.log"

    def _worker_died(self, earlier: int) -> bool:
        """Look for it in what the log has gained since it was `earlier` bytes long."""
        if not self._model_log.exists():
            return False
        with self._model_log.open("rb") as log:
            log.seek(earlier)
            return b"Backend worker process died" in log.read()

    def _log(self) -> str:
        logs = [self.state / "console.log", *sorted((self.state / "logs").glob("*_log.log"))]
        return "\n".join(
            f"{log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            for log in logs
        )


def client_of(state: Path, retries: int = 0) -> Client:
    """Return a client for the server that was started with a state folder.

    Raises:
        FileNotFoundError: none was.
    """
    properties = read_properties(state / "config.properties")
    open_to_all = properties.get("disable_token_authorization") == "true"
    return Client(
        properties["inference_address"],
        properties["management_address"],
        None if open_to_all else state / "key_file.json",
        retries,
    )


def store_of(state: Path) -> Path:
    """Return the model store of the server that was started with a state folder."""
    return Path(read_properties(state / "config.properties")["model_store"])


def read_properties(path: Path) -> dict[str, str]:
    """Read a file of `key=value` lines and `#` comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}
