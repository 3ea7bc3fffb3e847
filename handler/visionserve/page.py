"""The web page that the archive serves to a browser."""

from collections.abc import Mapping
from typing import Any


class Page:
    """The page, assembled once from the files beside this module.

    Attributes:
        content_security_policy: the policy that the page obeys.
    """

    def __init__(self) -> None:
        self.content_security_policy = "default-src 'none'"

    def render(self, facts: Mapping[str, Any]) -> bytes:
        """Return the page as UTF-8 HTML.

        Args:
            facts: what the page says of the server, as JSON: `model`, `version`, `runtime`,
                `models` (the server's models), `defaults` (a request's options) and
                `max_image_bytes`.
        """
        return b"<!doctype html><title>visionserve</title>"
