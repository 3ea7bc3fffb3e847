"""The forms of JSON that a request and its response can have."""

from collections.abc import Mapping
from typing import Any

from visionserve.protocols.plain import Plain
from visionserve.protocols.reply import Form, Reply, check_count
from visionserve.protocols.v1 import V1
from visionserve.protocols.v2 import V2

__all__ = ["Form", "Plain", "Reply", "check_count", "form_of"]


def form_of(body: Mapping[str, Any], binary: bytes, max_images: int) -> Form:
    """Tell the form of a JSON body by its members.

    Args:
        body: the JSON object.
        binary: the bytes that follow the JSON in the request.
        max_images: most images of a request.
    """
    if "instances" in body:
        return V1(body)
    return V2(body, binary, max_images) if "inputs" in body else Plain(body)
