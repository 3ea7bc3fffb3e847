"""A TorchServe row and its headers to images and options."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from visionserve.config import Options
from visionserve.errors import RequestError

HEADER_PREFIX = "x-classify-"
MAX_JSON_MEMBERS = 1000
MAX_SHOWN_NAME = 50


@dataclass(frozen=True)
class Request:
    """One HTTP request.

    Attributes:
        images: encoded images in the client's order, or the fault of one in its place.
        options: what holds for all of them.
        many: whether the answer is a list, in the same order.
    """

    images: list[bytes | RequestError]
    options: Options
    many: bool


def read(
    row: Mapping[str, Any], headers: Mapping[str, str], defaults: Options, max_images: int
) -> Request:
    """Read one row.

    Args:
        row: parameter name to value. A raw body is `body`; form fields and JSON members are
            `data` (one or several images) and options by their names.
        headers: HTTP headers, names in lower case; `x-classify-<option>` gives an option.
        defaults: options that neither the row nor the headers name.
        max_images: most images in the row.

    Raises:
        RequestError: 400 for anything that is not such a row; 413 for too many images.
    """
    fields = _read_body(row["body"], headers.get("content-type", "")) if "body" in row else {**row}
    data = fields.pop("data", None)
    options = _read_options(fields, headers, defaults)
    many = isinstance(data, list)
    parts = data if isinstance(data, list) else [data]
    if not parts or data is None or data == b"":
        raise RequestError(400, "empty_request", "The request holds no image.")
    if len(parts) > max_images:
        raise RequestError(
            413, "too_many_images", f"A request may hold {max_images} images, not {len(parts)}."
        )
    return Request([_read_image(part) for part in parts], options, many)


def _read_body(body: Any, content_type: str) -> dict[str, Any]:
    """TorchServe decodes a JSON body itself unless `decode_input_request=false`."""
    if content_type.partition(";")[0].strip().lower() == "application/json":
        if isinstance(body, bytes | bytearray):
            # Parsed, a member of three bytes takes a hundred.
            if body.count(b",") >= MAX_JSON_MEMBERS:
                raise RequestError(
                    400, "invalid_json", f"The body may have {MAX_JSON_MEMBERS} members."
                )
            try:
                body = json.loads(body)
            except (ValueError, RecursionError):
                raise RequestError(400, "invalid_json", "The body is not valid JSON.") from None
        if not isinstance(body, dict):
            raise RequestError(400, "invalid_json", 'The JSON body must be {"data": ...}.')
        return dict(body)
    return {"data": body}


def _read_options(
    fields: Mapping[str, Any], headers: Mapping[str, str], defaults: Options
) -> Options:
    given = {
        name.removeprefix(HEADER_PREFIX).replace("-", "_"): value
        for name, value in headers.items()
        if name.startswith(HEADER_PREFIX)
    }
    given |= {
        name: bytes(value).decode(errors="replace") if isinstance(value, bytearray) else value
        for name, value in fields.items()
    }
    if not given:
        return defaults
    try:
        return Options.model_validate(defaults.model_dump() | given)
    except ValidationError as error:
        raise RequestError(400, "invalid_option", _explain(error)) from None


def _explain(error: ValidationError) -> str:
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in fault["loc"])[:MAX_SHOWN_NAME]
        if fault["type"] == "extra_forbidden":
            faults.append(f"{name}: unknown option; there are {', '.join(Options.model_fields)}")
        else:
            faults.append(f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return "; ".join(faults) + "."


def _read_image(part: Any) -> bytes | RequestError:
    """Encoded bytes as they are; a string is base64, perhaps behind a data URI's head."""
    if isinstance(part, bytes | bytearray):
        return bytes(part)
    if not isinstance(part, str):
        return RequestError(400, "invalid_data", "An image must be a file or a base64 string.")
    text = part.partition(",")[2] if part.startswith("data:") else part
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return RequestError(400, "invalid_base64", "The image is not valid base64.")
