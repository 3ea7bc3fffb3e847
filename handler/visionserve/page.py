"""The web page that the archive serves to a browser."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

WEB = Path(__file__).with_name("web")
STYLE = '<link rel="stylesheet" href="style.css">'
SCRIPT = '<script type="module" src="main.js"></script>'
FACTS = '<script type="application/json" id="facts">{}</script>'

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async |function |class |const )", re.MULTILINE)


class Page:
    """The page, assembled once from the files in `web/`.

    Attributes:
        content_security_policy: the policy that the page obeys: its own style and script, by
            their hashes, and requests to its own origin.
    """

    def __init__(self) -> None:
        style = (WEB / "style.css").read_text(encoding="utf-8")
        script = bundle({path.name: path.read_text(encoding="utf-8") for path in WEB.glob("*.js")})
        html = (WEB / "index.html").read_text(encoding="utf-8")
        html = html.replace(STYLE, f"<style>{style}</style>")
        html = html.replace(SCRIPT, f'<script type="module">{script}</script>')
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

    def render(self, facts: Mapping[str, Any]) -> bytes:
        """Return the page as UTF-8 HTML.

        Args:
            facts: what the page says of the server, as JSON: `model`, `version`, `runtime`,
                `models` (the server's models), `defaults` (a request's options) and
                `max_image_bytes`.
        """
        data = json.dumps(facts, ensure_ascii=False).replace("<", r"\u003c")
        return f"{self._before}{FACTS.replace('{}', data)}{self._after}".encode()


def bundle(modules: Mapping[str, str]) -> str:
    """Join ES modules into one, each behind those that it imports.

    They come to share one scope, so a name declared in two of them is a syntax error.

    Args:
        modules: file name to source. Imports are `import { names } from "./file.js";`, exports
            stand before a declaration.

    Raises:
        graphlib.CycleError: modules import each other.
    """
    imports = {name: _IMPORT.findall(source) for name, source in modules.items()}
    return "".join(
        _EXPORT.sub("", _IMPORT.sub("", modules[name]))
        for name in TopologicalSorter(imports).static_order()
    )


def _source(text: str) -> str:
    """Name an inline style or script in a policy."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
