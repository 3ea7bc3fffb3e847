"""How the commands that measure a model end."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionserve_tools import lock
from visionserve_tools.quality.models import CANNOT


def write(
    file: Path,
    measure: Callable[[], tuple[Mapping[str, Any], Sequence[Path]]],
    beside: Sequence[Path] = (),
) -> int:
    """Hold a command's output while it measures, write its figures there, and tell what is written.

    Args:
        file: gets the figures as JSON, which has no NaN: null takes its place.
        measure: returns the figures, and the paths of what it wrote itself.
        beside: what it may write, which must be writable before it begins.

    Returns:
        The command's exit code. What it cannot do is told in a line on standard error.
    """
    try:
        with lock.replace(file, *beside) as stream:
            figures, others = measure()
            text = json.dumps(_without_nan(figures), indent=1, allow_nan=False)
            stream.write(f"{text}\n".encode())
    except CANNOT as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(map(str, [file, *others])))
    return 0


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
