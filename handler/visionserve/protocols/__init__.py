"""The forms of JSON that a request and its response can have."""

from collections.abc import Mapping
from typing import Any

from visionserve.protocols.huggingface import HuggingFace
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
    if "inputs" not in body:
        return Plain(body)
    return HuggingFace(body) if _is_text(body["inputs"]) else V2(body, binary, max_images)


def _is_text(inputs: Any) -> bool:
    """Tell base64 strings, which are Hugging Face's, from tensors."""
    first = inputs[0] if isinstance(inputs, list) and inputs else inputs
    return isinstance(first, str)
