"""Read the tensors out of a file of weights, as training programs write them."""

from __future__ import annotations

import re
import shlex
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionserve_tools import advice

if TYPE_CHECKING:
    from torch import Tensor

# The keys under which training programs keep a state dict, and an average of the weights. Where a
# file has none of them, each other key may hold one, but those of an optimizer.
KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
AVERAGED = ("model_ema", "ema", "state_dict_ema", "model_ema_state_dict", "ema_state_dict")
OPTIMIZER = re.compile(r"optim|sched|scaler")
SAVE = 'Where it was trained, save the weights alone: torch.save(model.state_dict(), "weights.pt").'
# What a checkpoint may hold of Python's own library. No other name of that library is accepted,
# because some of its functions do harm by being called, as os.system does.
HARMLESS = re.compile(
    r"argparse\.Namespace|collections\.defaultdict|pathlib(\._local)?\.\w+|datetime\.\w+"
    r"|types\.SimpleNamespace|functools\.partial|decimal\.Decimal|uuid\.UUID"
    r"|builtins\.(bool|int|float|complex|str|bytearray|list|tuple|dict|set|frozenset|slice|range)"
)
LARGEST_NAME = 200


class CheckpointError(Exception):
    """A file holds no state dict of tensors; the message says what it is, without its path."""


class _Absent:
    """Takes the place of an object whose class is not loaded. It runs no code and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Absent:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Forget the object's attributes."""


class _AbsentDict:
    """Becomes a plain dict, since the unpickler adds items to nothing else."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def read(file: Path) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of a file, by the keys under which they lie: "" or "model.state_dict".

    The file is one of `torch.save`, whose state dict may lie under `KEYS` or `AVERAGED`, or one of
    safetensors. No class or function that it names is imported, except PyTorch's own for tensors.

    Raises:
        CheckpointError: the file is of another kind, is damaged, or holds no such state dict.
    """
    with file.open("rb") as stream:
        head = stream.read(1024)
    if complaint := _foreign(file, head):
        raise CheckpointError(complaint)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size:
        return {"": _read_safetensors(file)}
    content = _unpickle(file)
    if not (found := _state_dicts(content)):
        raise CheckpointError(f"holds {_described(content)}. {SAVE}")
    return found


def _foreign(file: Path, head: bytes) -> str | None:
    """Say what a file is, unless it may be one of `torch.save` or safetensors."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty."
    if head.startswith(b"version https://git-lfs.github.com"):
        return "is a pointer of Git LFS, not the weights: run git lfs pull."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: download the file itself."
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file, as Keras writes it: a network of PyTorch is needed."
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model: a network of PyTorch is needed."
    if file.suffix == ".onnx" or (head[:1] == b"\x08" and b"\x12\x07pytorch" in head[:16]):
        return f"is an ONNX model, whose layers are joined. {SAVE}"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")):
        return "is a compressed file: unpack it first."
    if head.startswith(b"PK"):
        return _foreign_zip(file)
    if head[:2] != b"\x80\x02" and tarfile.is_tarfile(file):
        return "is a tar archive: unpack it, and give the file of weights in it."
    if b"\0" not in head and text.isascii() and not head.startswith(b"\x80"):
        return f"is a text, not weights. {SAVE}"
    return None


def _foreign_zip(file: Path) -> str | None:
    """Say what a zip file is, unless it is one of `torch.save`."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "is cut short or damaged: copy it again."
    path = shlex.quote(str(file))
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inner):
        take = "torch.jit.load(sys.argv[1], map_location='cpu').state_dict()"
        return f"is a TorchScript program. Take its weights out: {_command(take)} {path}"
    if "archive_format" in inner:
        take = "torch.export.load(sys.argv[1]).state_dict"
        return f"is a program of torch.export. Take its weights out: {_command(take)} {path}"
    if "MAR-INF/MANIFEST.json" in names:
        return f"is a model archive, built already: {advice.serve('archive', 'FILE')} serves it."
    if "model.weights.h5" in names:
        return "is a Keras model: a network of PyTorch is needed."
    if "data.pkl" not in inner:
        few = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        return f"is a zip archive of other files ({few}): give the file of weights itself."
    return None


def _command(weights: str) -> str:
    return f"""python -c "import sys, torch; torch.save({weights}, 'weights.pt')\""""


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, ValueError, OSError, KeyError):
        raise CheckpointError("is cut short or damaged: copy it again.") from None


def _unpickle(file: Path) -> Any:
    """Load what `torch.save` wrote, with an `_Absent` for each object of a foreign class."""
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:
        # Files from before PyTorch 1.6 are no zip files, and are not searched.
        names = ["argparse.Namespace", "pathlib.PosixPath"]
    for name in sorted(names):
        if name.partition(".")[0] in sys.stdlib_module_names and not HARMLESS.fullmatch(name):
            raise CheckpointError(f"asks for {_short(name)}, which is not loaded. {SAVE}")
    absent: list[Any] = [(_stand_in(name), name) for name in names]
    try:
        with torch.serialization.safe_globals(absent), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        # The error's own text recommends to load code.
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"holds an object of {_short(found.group(1))}, which is not loaded"
        elif "Unsupported operand" in str(error):
            what = "is pickled in another way than that of torch.save"
        else:
            what = "is cut short, damaged or of another program: torch.load cannot read it"
        raise CheckpointError(f"{what}. {SAVE}") from None


def _stand_in(name: str) -> type:
    kind = _AbsentDict if name.lower().endswith("dict") else _Absent
    return type(name, (kind,), {})


def _state_dicts(content: Any, place: tuple[str, ...] = ()) -> dict[str, dict[str, Tensor]]:
    """Find the dicts of tensors under known keys, or else the content itself, or else any other.

    What is no tensor beside tensors, such as a number of epochs, is left out.
    """
    import torch

    if not isinstance(content, dict):
        return {}
    inner: dict[str, dict[str, Tensor]] = {}
    for key in (*KEYS, *AVERAGED):
        inner |= _state_dicts(content.get(key), (*place, key))
    tensors = {str(k): value for k, value in content.items() if isinstance(value, torch.Tensor)}
    if not (inner or tensors):
        for key, value in content.items():
            if not OPTIMIZER.search(str(key)):
                inner |= _state_dicts(value, (*place, str(key)))
    return inner or ({".".join(place): tensors} if tensors else {})


def _described(content: Any) -> str:
    """Say in a few words what an object is that holds no state dict."""
    if isinstance(content, _Absent):
        return f"a whole pickled object of {_short(type(content).__name__)}, not its weights alone"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}, not a dict of tensors"
    for key, value in content.items():
        if isinstance(value, _Absent):
            name = _short(type(value).__name__)
            return f"a whole pickled object of {name} as {_short(str(key))}, not its weights alone"
    keys = ", ".join(_short(str(key)) for key in [*content][:8])
    return f"no dict of tensors; its keys are {keys}" if keys else "an empty dict"


def _short(name: str) -> str:
    return name if len(name) <= LARGEST_NAME else f"{name[:LARGEST_NAME]}..."
