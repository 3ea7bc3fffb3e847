"""The web page that a browser gets."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, get_args

from visionserve import processor
from visionserve.config import TTA, ModelConfig
from visionserve.metadata import Metadata
from visionserve.postprocessing import HINTS, NO_LABEL, UNFAMILIAR, WARNINGS

WEB = Path(__file__).with_name("web")
STYLE = '<link rel="stylesheet" href="style.css">'
SCRIPT = '<script type="module" src="main.js"></script>'
FACTS = '<script type="application/json" id="facts">{}</script>'

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async |function |class |const )", re.MULTILINE)


class Page:
    """The page, assembled once from the files in `web/`.

    Attributes:
        content_security_policy: value of the HTTP header. It allows the page's own style and
            script, by their hashes, and requests to its own origin.
    """

    def __init__(self) -> None:
        style = (WEB / "style.css").read_text(encoding="utf-8")
        script = bundle({path.name: path.read_text(encoding="utf-8") for path in WEB.glob("*.js")})
        html = (WEB / "index.html").read_text(encoding="utf-8")
        html = html.replace(STYLE, f"<style>{style}</style>")
        html = html.replace(SCRIPT, f'<script type="module">{script}</script>')
        for path in WEB.glob("*.jpg"):
            html = html.replace(f'src="{path.name}"', f'src="{_data_uri(path)}"')
        self._before, _, self._after = html.partition(FACTS)
        self.content_security_policy = "; ".join(
            (
                "default-src 'none'",
                f"style-src {_source(style)}",
                f"script-src {_source(script)}",
                "connect-src 'self'",
                "img-src blob: data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )

    def render(self, own: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> bytes:
        """Return the page as UTF-8 HTML.

        Args:
            own: the model that serves the page, as `describe` returns it.
            models: all models of the server, this one among them.
        """
        ordered = sorted(models, key=lambda facts: (facts["model"], facts["version"]))
        facts = {
            "model": own["model"],
            "version": own["version"],
            "models": ordered,
            "warning": WARNINGS["en"],
            "unfamiliar": UNFAMILIAR["en"],
            "noLabel": NO_LABEL["en"],
            "hints": HINTS,
        }
        data = json.dumps(facts, ensure_ascii=False).replace("<", r"\u003c")
        return f"{self._before}{FACTS.replace('{}', data)}{self._after}".encode()


def describe(directory: Path, metadata: Metadata) -> dict[str, Any]:
    """Return what the page needs to know about an unpacked archive, as a JSON object.

    Args:
        directory: where the archive's files are.
        metadata: the archive's `metadata.json`.

    Returns:
        `model` and `version`; `runtime` with what the model is to compute in on this processor;
        `defaults`, the options of a request that sets none; `max_image_bytes` and `max_images`; the
        `formats` that are read; `modes`, the TTA modes that the model has; `explains`, whether it
        can be explained; `classes`, how many it has; `multi_label`, whether a picture may have
        several; `names`, the classes' names in English by label, if they have such names;
        `samples`, whether some pictures are kept, so that a person can report the right label.

    Raises:
        OSError, KeyError, ValueError: the folder is not an archive of this handler.
    """
    manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_bytes())["model"]
    config = ModelConfig.load(directory / manifest["configFile"]).handler
    english = metadata.names.get("en", ())
    return {
        "model": manifest["modelName"],
        "version": manifest.get("modelVersion", ""),
        "runtime": f"{config.runtime} {processor.precision(config.precision, metadata.bf16)}",
        "defaults": metadata.suited(config.defaults).model_dump(),
        "max_image_bytes": config.max_image_bytes,
        "max_images": config.max_images,
        "formats": config.formats,
        "modes": metadata.modes(get_args(TTA)),
        "explains": metadata.explains,
        "classes": len(metadata.categories),
        "multi_label": metadata.multi_label,
        "names": dict(zip(metadata.categories, english, strict=False)),
        "samples": config.samples.on,
    }


def bundle(modules: Mapping[str, str]) -> str:
    """Join ES modules into one script, each after the modules that it imports.

    All of them share one scope then, so a name that two of them declare is a syntax error.

    Args:
        modules: file name to source. Each import is a line `import { names } from "./file.js";`,
            and each `export` is part of a declaration.

    Raises:
        graphlib.CycleError: modules import each other.
    """
    imports = {name: _IMPORT.findall(source) for name, source in modules.items()}
    return "".join(
        _EXPORT.sub("", _IMPORT.sub("", modules[name]))
        for name in TopologicalSorter(imports).static_order()
    )


def _data_uri(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _source(text: str) -> str:
    """Return the name that a policy gives an inline style or script: its hash."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
