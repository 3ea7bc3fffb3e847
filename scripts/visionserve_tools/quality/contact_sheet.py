"""A page of photographs for people: one HTML file that holds its thumbnails and loads nothing."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps

from visionserve_tools import photos
from visionserve_tools.batch.rows import name

MOST = 48
THUMBNAIL = 160
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:1em}main{display:flex;flex-wrap:wrap;gap:1em}"
    "figure{margin:0;width:200px;overflow-wrap:anywhere}"
    f"img{{width:{THUMBNAIL}px;height:{THUMBNAIL}px;object-fit:contain;background:#eee}}"
)


def page(title: str, heading: str, about: str, figures: Iterable[str]) -> str:
    """Return a page of what `figure` returns. Its other texts are plain text."""
    content = "\n".join(figures)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"<h1>{html.escape(heading)}</h1>\n<p>{html.escape(about)}</p>\n"
        f"<main>\n{content}\n</main>\n</html>\n"
    )


def figure(path: Path, source: Path, *lines: str) -> str:
    """Return a photograph's thumbnail with its name and lines of plain text.

    Args:
        path: of the photograph.
        source: the photographs' folder, or a file in it, which the name leaves out.

    Raises:
        ValueError, OSError: the photograph cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    text = "<br>".join(map(html.escape, lines))
    return (
        f'<figure><img alt="" src="{_thumbnail(path)}">'
        f"<figcaption><b>{html.escape(name(shown))}</b><br>{text}</figcaption></figure>"
    )


def _thumbnail(path: Path) -> str:
    """Return a small JPEG as a data URI."""
    image = ImageOps.contain(photos.read(path), (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
