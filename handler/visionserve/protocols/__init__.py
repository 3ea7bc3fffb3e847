"""The forms of a JSON request and of its answer, told apart by the body's members."""

from collections.abc import Mapping
from typing import Any

from visionserve.protocols.plain import Plain
from visionserve.protocols.reply import Form, Outcome, Reply
from visionserve.protocols.v1 import V1
from visionserve.protocols.v2 import V2

__all__ = ["Form", "Outcome", "Plain", "Reply", "form_of"]


def form_of(body: Mapping[str, Any], binary: bytes = b"") -> Form:
    """Tell the form of a body.

    Args:
        body: the JSON object.
        binary: what followed it.
    """
    if "instances" in body:
        return V1(body)
    return V2(body, binary) if "inputs" in body else Plain(body)
