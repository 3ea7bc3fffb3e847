"""From a TorchServe row and its headers to a request's items."""

import json
import logging
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError

from visionserve.answer import to_json
from visionserve.config import HandlerConfig, Language, Options
from visionserve.deadline import check
from visionserve.encodings import from_base64, unpack
from visionserve.errors import RequestError
from visionserve.item import Budget, Item
from visionserve.protocols import Form, Plain, check_count, form_of
from visionserve.protocols.v2 import LENGTH_HEADER, V2, split
from visionserve.sampling import Report

OPTION_PREFIX = "x-classify-"
PROBE_HEADER = "x-visionserve-probe"
DESCRIBE_HEADER = "x-visionserve-describe"
ASK_HEADER = f"{OPTION_PREFIX}describe"
ENCODING_HEADER = "content-encoding"
MAX_JSON_MEMBERS = 1000
MAX_JSON_NUMBERS = 3_000_000
MAX_OPTION_LENGTH = 100
MAX_SHOWN_NAME = 50
MAX_SHOWN_FAULTS = 5
MAX_FIELDS = 100
SURROGATE = re.compile(rb"\\ud[89a-f]", re.IGNORECASE)

Description = Literal["card", "classes", "metadata", "ready"]
# What nginx asks for, and what clients do.
ASKED: tuple[Description, ...] = ("metadata", "ready")
ASKED_BY_CLIENTS: tuple[Description, ...] = ("card", "classes")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One HTTP request.

    Attributes:
        items: the images in the client's order, each with its own fault if it has one. A request
            that fails as a whole has a single item, with that fault. A browser that opens the web
            page sends no image, and so its request has no items.
        many: whether the client sent a list of images, and so gets a list in return.
        form: how the response is written.
        probe: whether nginx sent it to check the model's health. Probes are not counted.
        describes: what it asks about the model, or None: the model card, as clients and the
            management API do; its classes; or what the Open Inference Protocol has about a model,
            through nginx. It has no items either.
        report: what a person says of an earlier answer, or None. It has one item where the picture
            is sent again, otherwise none.
    """

    items: list[Item]
    many: bool
    form: Form
    probe: bool
    describes: Description | None = None
    report: Report | None = None


def read(
    row: Mapping[str, Any],
    headers: Mapping[str, str],
    config: HandlerConfig,
    deadline: float = math.inf,
) -> Request:
    """Read one row. Whatever is wrong with it becomes a fault of its items.

    Args:
        row: parameter name to value. A raw body is `body`. Form fields and members of a JSON
            object are `data`, one image or several, and options by their names.
        headers: HTTP headers, names in lower case. `x-classify-<option>` sets an option, and
            `accept-language` sets the language if no option does. TorchServe adds `explain` to a
            request to /explanations, for which `accept: image/png` sets the option `format`.
            `content-encoding` tells how a raw body is compressed.
            `x-classify-describe` asks for the model card or its classes in place of an answer, if
            there is no body.
        config: the limits, and the defaults of options that the client does not set.
        deadline: time, by `time.monotonic`, after which it is not read.

    Returns:
        The request. Its fault is 413 if there are too many images, 503 if it is not read in time,
        500 if there is no memory to read it, or a fault of this module, and otherwise 400.
    """
    form: Form = Plain({})
    probe = PROBE_HEADER in headers
    # A client may send this header, too, but its row has a body.
    if not row and headers.get("describe") == "True":
        return Request([], many=False, form=form, probe=probe, describes="card")
    for asked in ASKED:
        if headers.get(DESCRIBE_HEADER) == asked:
            return Request([], many=False, form=form, probe=probe, describes=asked)
    for asked in ASKED_BY_CLIENTS:
        if row == {"body": b""} and headers.get(ASK_HEADER) == asked:
            return Request([], many=False, form=form, probe=probe, describes=asked)
    if _opens_page(row, headers):
        return Request([], many=False, form=form, probe=probe)
    try:
        check(deadline)
        if ASK_HEADER in headers:
            known = " or ".join(ASKED_BY_CLIENTS)
            message = f"{ASK_HEADER}: give {known}, in a request without a body."
            raise RequestError(400, "invalid_option", message)
        form = _form(row, headers, config)
        fields = form.fields()
        report = _read_report(fields, config)
        data = fields.pop("data", None)
        if report and data is None and not fields:
            return Request([], many=False, form=form, probe=probe, report=report)
        options = _read_options(fields, headers, config.defaults)
        many = isinstance(data, list)
        if options.format == "png" and (many or not options.explain):
            raise RequestError(400, "invalid_option", "format: png is for one explained image.")
        parts = data if isinstance(data, list) else [data]
        if not parts or data is None or data == b"":
            raise RequestError(400, "empty_request", "The request holds no image.")
        check_count(len(parts), 1 if report else config.max_images)
        budget = Budget(config.max_work, config.max_answer_bytes)
        items = [_item(part, options, probe, budget, report is not None) for part in parts]
    except RequestError as error:
        return _failed(error.without_frames(), form, config, probe)
    except Exception:
        logger.exception("A request could not be read.")
        fault = RequestError(500, "internal_error", "The request could not be read.")
        return _failed(fault, form, config, probe)
    return Request(items, many, form, probe, report=report)


def _failed(fault: RequestError, form: Form, config: HandlerConfig, probe: bool) -> Request:
    failed = Item(b"", config.defaults, probe, fault=fault)
    return Request([failed], many=False, form=form, probe=probe)


def _opens_page(row: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    """Tell whether a browser opens the web page.

    TorchServe does not tell a handler the HTTP method, and a GET looks like a POST without a
    body. A client that accepts HTML is taken for a browser; any other one gets an error.
    """
    return row == {"body": b""} and "text/html" in headers.get("accept", "")


def _form(row: Mapping[str, Any], headers: Mapping[str, str], config: HandlerConfig) -> Form:
    """Find out which form a row has.

    A JSON body is bytes here or parsed already: TorchServe parses it unless its configuration
    says `decode_input_request=false`.
    """
    is_form = _media_type(headers).startswith("multipart/")
    if is_form and "data" not in row:
        # A part with the name of a raw body is an image, and does not hide the parts beside it.
        return Plain({"data" if name == "body" else name: part for name, part in row.items()})
    if is_form or "body" not in row:
        return Plain(row)
    body, binary = row["body"], b""
    if ENCODING_HEADER in headers and isinstance(body, bytes | bytearray):
        body = unpack(body, headers[ENCODING_HEADER], config.max_body_bytes)
    if LENGTH_HEADER in headers:
        body, binary = split(bytes(body), headers[LENGTH_HEADER])
        if not body:
            return V2.of_image(binary)
    elif not _is_json(body, _media_type(headers)):
        return Plain({"data": body})
    if isinstance(body, bytes | bytearray):
        body = _parse(body)
    if not isinstance(body, dict):
        raise RequestError(400, "invalid_json", 'The JSON body must be {"data": ...}.')
    return form_of(body, binary, config.max_images)


def _is_json(body: Any, media_type: str) -> bool:
    """Tell JSON by its type, or by its brace, with which no image begins.

    Triton's client names no type, and `curl -d` a form's.
    """
    if media_type == "application/json" or media_type.startswith("image/"):
        return media_type == "application/json"
    return isinstance(body, bytes | bytearray) and body[:100].lstrip().startswith(b"{")


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _parse(body: bytes | bytearray) -> Any:
    """Parse JSON, unless it would take too much memory.

    Parsing expands small objects, lists and strings about 30 times, so commas are counted first,
    and few are allowed. A number takes 32 bytes at most, so a body that is nearly all numbers,
    such as the pixels of a tensor, may have many more.

    A string may hold half of a surrogate pair as an escape; no answer could repeat it, as it has no
    encoding.
    """
    nested = sum(body.count(mark) for mark in (b"[", b"{", b'"'))
    limit = MAX_JSON_NUMBERS if nested < MAX_JSON_MEMBERS else MAX_JSON_MEMBERS
    if body.count(b",") >= limit:
        raise RequestError(
            400,
            "invalid_json",
            f"The body may have {MAX_JSON_MEMBERS} members, or {MAX_JSON_NUMBERS} numbers alone.",
        )
    try:
        parsed = json.loads(body, parse_constant=_refuse_constant)
        if SURROGATE.search(body):
            to_json(parsed)
    except (ValueError, RecursionError):
        raise RequestError(400, "invalid_json", "The body is not valid JSON.") from None
    return parsed


def _refuse_constant(name: str) -> None:
    """Refuse NaN and the infinities, which Python reads but JSON does not have."""
    raise ValueError(name)


def _read_options(
    fields: Mapping[str, Any], headers: Mapping[str, str], defaults: Options
) -> Options:
    """Merge a request's options: fields go before headers, and headers before the defaults."""
    given: dict[str, Any] = _read_language(headers.get("accept-language", ""))
    if headers.get("explain") == "True":
        png = headers.get("accept", "").startswith("image/png")
        given |= {"explain": True, "format": "png" if png else "json"}
    given |= {
        name.removeprefix(OPTION_PREFIX).replace("-", "_"): value
        for name, value in headers.items()
        if name.startswith(OPTION_PREFIX)
    }
    given |= {
        name: bytes(value).decode(errors="replace") if isinstance(value, bytearray) else value
        for name, value in fields.items()
    }
    if not given:
        return defaults
    if len(given) > MAX_FIELDS:
        raise RequestError(
            400, "invalid_option", f"A request has at most {MAX_FIELDS} options, not {len(given)}."
        )
    try:
        return Options.model_validate(defaults.model_dump() | given)
    except ValidationError as error:
        raise RequestError(400, "invalid_option", _explain(error)) from None


def _read_report(fields: dict[str, Any], config: HandlerConfig) -> Report | None:
    """Take the report of an earlier answer from a request's fields, if there is one.

    Raises:
        RequestError: 409 `samples_off`; 400 `invalid_report`.
    """
    if "report" not in fields:
        return None
    if not config.samples.on:
        raise RequestError(
            409,
            "samples_off",
            "The model keeps no samples: its profile has to set handler.samples.",
        )
    try:
        return Report.model_validate(fields.pop("report"))
    except ValidationError:
        raise RequestError(
            400,
            "invalid_report",
            'A report is {"id": the field sample of an answer, "label": a label or null}.',
        ) from None


def _read_language(accepted: str) -> dict[str, Language]:
    """Choose the language that a client prefers (RFC 9110, section 12.5.4), if there is one."""
    best: dict[str, float] = {}
    for entry in accepted.lower().split(","):
        tag, *parameters = [part.strip() for part in entry.split(";")]
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        with suppress(ValueError):
            best.setdefault(tag.partition("-")[0], float(quality))
    known = [language for language in get_args(Language) if best.get(language, 0) > 0]
    return {"language": max(known, key=lambda language: best[language])} if known else {}


def _explain(error: ValidationError) -> str:
    """Say for people what is wrong with each option."""
    faults = []
    told = error.errors(include_url=False, include_context=False)
    for fault in told[:MAX_SHOWN_FAULTS]:
        name = ".".join(str(part) for part in fault["loc"])[:MAX_SHOWN_NAME]
        unknown = fault["type"] == "extra_forbidden"
        if unknown and len(str(fault["input"])) > MAX_OPTION_LENGTH:
            faults.append(f"{name}: unknown option; an image belongs in the field data")
        elif unknown:
            faults.append(
                f"{name}: unknown option; the options are {', '.join(Options.model_fields)}"
            )
        else:
            faults.append(f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
    if len(told) > MAX_SHOWN_FAULTS:
        faults.append(f"and {len(told) - MAX_SHOWN_FAULTS} more")
    return "; ".join(faults) + "."


def _item(
    part: Any, options: Options, probe: bool, budget: Budget, is_reported: bool = False
) -> Item:
    try:
        return Item(_read_image(part), options, probe, budget, is_reported=is_reported)
    except RequestError as error:
        return Item(b"", options, probe, budget, error.without_frames())


def _read_image(part: Any) -> bytes:
    """Return an image's encoded bytes. A string is base64, or a data URI that holds base64."""
    if isinstance(part, bytes | bytearray):
        return bytes(part)
    if not isinstance(part, str):
        raise RequestError(400, "invalid_data", "An image must be a file or a base64 string.")
    return from_base64(part)
