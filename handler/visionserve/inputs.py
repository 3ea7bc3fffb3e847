"""A TorchServe row and its headers to images and options."""

import base64
import binascii
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from visionserve.config import Language, Options
from visionserve.errors import RequestError
from visionserve.protocols import Form, Plain, form_of
from visionserve.protocols.v2 import LENGTH_HEADER, split

HEADER_PREFIX = "x-classify-"
MAX_JSON_MEMBERS = 1000
MAX_JSON_NUMBERS = 3_000_000
MAX_OPTION = 100
MAX_SHOWN_NAME = 50


@dataclass(frozen=True)
class Request:
    """One HTTP request.

    Attributes:
        images: encoded images in the client's order, or the fault of one in its place; a request
            that failed as a whole has its fault alone.
        options: what holds for all of them.
        many: whether the answer is a list, in the same order.
        form: how the answer is written.
        probe: nginx asks whether the model answers: it is neither counted nor kept.
    """

    images: list[bytes | RequestError]
    options: Options
    many: bool
    form: Form
    probe: bool = False


def read(
    row: Mapping[str, Any], headers: Mapping[str, str], defaults: Options, max_images: int
) -> Request:
    """Read one row.

    Args:
        row: parameter name to value. A raw body is `body`; form fields and JSON members are
            `data` (one or several images) and options by their names.
        headers: HTTP headers, names in lower case; `x-classify-<option>` gives an option, and
            `accept-language` a language where no option does. `explain` is TorchServe's mark of
            a request to /explanations; `accept: image/png` there is the option `format`.
        defaults: options that neither the row nor the headers name.
        max_images: most images in the row.

    Returns:
        The request. Its fault is 400 for anything that is not such a row, and 413 for too many
        images.
    """
    form: Form = Plain({})
    try:
        form = _form(row, headers)
        fields = form.fields()
        data = fields.pop("data", None)
        options = _read_options(fields, headers, defaults)
        many = isinstance(data, list)
        if options.format == "png" and (many or not options.explain):
            raise RequestError(400, "invalid_option", "format: png is for one explained image.")
        parts = data if isinstance(data, list) else [data]
        if not parts or data is None or data == b"":
            raise RequestError(400, "empty_request", "The request holds no image.")
        if len(parts) > max_images:
            raise RequestError(
                413, "too_many_images", f"A request may hold {max_images} images, not {len(parts)}."
            )
    except RequestError as error:
        return Request([error], defaults, many=False, form=form)
    return Request([_read_image(part) for part in parts], options, many, form)


def _form(row: Mapping[str, Any], headers: Mapping[str, str]) -> Form:
    """TorchServe decodes a JSON body itself unless `decode_input_request=false`."""
    if "body" not in row:
        return Plain(row)
    body, binary = row["body"], b""
    if LENGTH_HEADER in headers:
        body, binary = split(bytes(body), headers[LENGTH_HEADER])
    elif not _is_json(headers.get("content-type", "")):
        return Plain({"data": body})
    if isinstance(body, bytes | bytearray):
        body = _parse(body)
    if not isinstance(body, dict):
        raise RequestError(400, "invalid_json", 'The JSON body must be {"data": ...}.')
    return form_of(body, binary)


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _parse(body: bytes | bytearray) -> Any:
    """Parse JSON whose size in memory is bounded.

    Parsing expands an object or a string of three bytes to over a hundred, so the commas between
    them are counted first. A number takes 32 bytes at most: pixels of a tensor, which come with
    hardly any brackets and quotes, may be many.
    """
    nested = sum(body.count(mark) for mark in (b"[", b"{", b'"'))
    most = MAX_JSON_NUMBERS if nested < MAX_JSON_MEMBERS else MAX_JSON_MEMBERS
    if body.count(b",") >= most:
        raise RequestError(
            400,
            "invalid_json",
            f"The body may have {MAX_JSON_MEMBERS} members, or {MAX_JSON_NUMBERS} numbers.",
        )
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "invalid_json", "The body is not valid JSON.") from None


def _read_options(
    fields: Mapping[str, Any], headers: Mapping[str, str], defaults: Options
) -> Options:
    given: dict[str, Any] = _read_language(headers.get("accept-language", ""))
    if headers.get("explain") == "True":
        png = headers.get("accept", "").startswith("image/png")
        given |= {"explain": True, "format": "png" if png else "json"}
    given |= {
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


def _read_language(accepted: str) -> dict[str, Language]:
    """Choose the language that a client likes best (RFC 9110, section 12.5.4)."""
    best: dict[str, float] = {}
    for entry in accepted.lower().split(","):
        tag, _, quality = entry.partition(";q=")
        language = tag.strip().partition("-")[0]
        with suppress(ValueError):
            best.setdefault(language, float(quality or 1))
    known = [language for language in get_args(Language) if best.get(language, 0) > 0]
    return {"language": max(known, key=lambda language: best[language])} if known else {}


def _explain(error: ValidationError) -> str:
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in fault["loc"])[:MAX_SHOWN_NAME]
        if fault["type"] == "extra_forbidden" and len(str(fault["input"])) > MAX_OPTION:
            faults.append(f"{name}: an image is sent in the field data")
        elif fault["type"] == "extra_forbidden":
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
