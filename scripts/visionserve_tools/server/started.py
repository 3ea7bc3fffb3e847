"""The settings that a server was started with."""

from pathlib import Path

from pydantic import Field

from visionserve.config import Strict
from visionserve_tools import paths
from visionserve_tools.kept import read_file


class StateError(ValueError):
    """A file of a state folder cannot be read, for example as a full disk cut it off."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{file}: is damaged; stop the server, which works without it, and start it again."
        )


class Started(Strict):
    """The settings that a server was started with, kept as `server.json` in its state folder.

    Attributes:
        profile: the name of a folder in `config/`.
        store: the folder that its archives were copied from.
        archives: the SHA-256 of each archive in hex, by file name, in the order given.
        unrecorded: whether the server accepts archives without a record of how they were built.
        asked: the name that was asked for, by the file name of an archive that took its place.
    """

    profile: str
    store: str
    archives: dict[str, str]
    unrecorded: bool
    asked: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def read(cls, state: Path) -> "Started":
        """Read the settings of a state folder's last start.

        Raises:
            FileNotFoundError: there was no start.
            StateError: the file is of another version, or was cut off by a full disk.
        """
        file = state / "server.json"
        try:
            started = cls.model_validate_json(read_file(file), strict=True)
        except FileNotFoundError:
            raise
        except (OSError, ValueError):
            raise StateError(file) from None
        if started.profile not in paths.profiles():
            raise StateError(file)
        return started
