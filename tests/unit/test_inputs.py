"""Rows of TorchServe to requests."""

import base64
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest

from visionserve import inputs
from visionserve.config import HandlerConfig, Options
from visionserve.errors import RequestError

DEFAULTS = Options(tta="five_crop", top_k=3, threshold=0.5)
JSON = {"content-type": "application/json"}


CONFIG = HandlerConfig(defaults=DEFAULTS, max_images=4, max_work=7)


def read(row: dict[str, Any], headers: dict[str, str] | None = None) -> inputs.Request:
    return inputs.read(row, headers or {}, CONFIG)


def images(request: inputs.Request) -> list[bytes]:
    return [item.data for item in request.items]


def options(request: inputs.Request) -> Options:
    """The options of all images, which are the same."""
    first = request.items[0].options
    assert all(item.options == first for item in request.items)
    return first


def refused(row: dict[str, Any], headers: dict[str, str] | None = None) -> RequestError:
    request = read(row, headers)
    (item,) = request.items
    assert item.fault and item.data == b"" and not request.many
    return item.fault


def test_a_raw_body_is_one_image_with_the_defaults() -> None:
    request = read({"body": bytearray(b"x")})
    assert (images(request), options(request), request.many) == ([b"x"], DEFAULTS, False)


def test_the_images_of_a_request_share_one_budget() -> None:
    first, second = read({"data": [bytearray(b"1"), bytearray(b"2")]}).items
    assert first.budget is second.budget and first.budget.left == 7
    assert read({"data": bytearray(b"1")}).items[0].budget is not first.budget


def test_only_a_browser_without_an_image_opens_the_page() -> None:
    html = {"accept": "text/html,*/*;q=0.8"}
    assert read({"body": bytearray()}, html).items == []
    assert images(read({"body": bytearray(b"x")}, html)) == [b"x"]
    assert refused({"body": bytearray()}, {"accept": "*/*"}).code == "empty_request"


def test_a_description_is_asked_for_by_a_header_without_an_image() -> None:
    for asked in ("card", "classes"):
        headers = {"x-classify-describe": asked, "accept": "text/html"}
        assert read({"body": bytearray()}, headers).describes == asked
        assert refused({"body": bytearray(b"x")}, headers).code == "invalid_option"
    for body, asked in ((b"", "ready"), (b"", "nonsense"), (b"x", "card")):
        fault = refused({"body": bytearray(body)}, {"x-classify-describe": asked})
        assert (fault.status, "give card or classes" in fault.message) == (400, True)


def test_a_probe_is_told_by_its_header() -> None:
    row = {"body": bytearray(b"x")}
    for headers, probe in (({}, False), ({"x-visionserve-probe": "1"}, True)):
        request = read(row, headers)
        assert (request.probe, request.items[0].probe) == (probe, probe)


def test_form_fields_are_options() -> None:
    request = read({"data": bytearray(b"x"), "tta": bytearray(b"none"), "top_k": bytearray(b"5")})
    assert options(request) == Options(tta="none", top_k=5, threshold=0.5)


def test_headers_are_options_and_fields_come_first() -> None:
    headers = {"x-classify-top-k": "7", "x-classify-threshold": "0.9", "user-agent": "x"}
    request = read({"data": bytearray(b"x"), "top_k": bytearray(b"2")}, headers)
    assert options(request) == Options(tta="five_crop", top_k=2, threshold=0.9)


def test_several_parts_keep_their_order() -> None:
    request = read({"data": [bytearray(b"1"), bytearray(b"2")]})
    assert (images(request), request.many) == ([b"1", b"2"], True)


@pytest.mark.parametrize("decoded", [True, False])
def test_json_holds_base64_and_options(decoded: bool) -> None:
    text = base64.b64encode(b"x").decode()
    body = {"data": [text, f"data:image/png;base64,{text}"], "top_k": 1}
    row = {"body": body if decoded else bytearray(str(body).replace("'", '"').encode())}
    request = read(row, {"content-type": "application/json; charset=utf-8"})
    assert (images(request), request.many, options(request).top_k) == ([b"x", b"x"], True, 1)


def test_bad_base64_is_the_fault_of_that_image_alone() -> None:
    request = read({"body": {"data": ["eA==", "&", 5]}}, JSON)
    assert images(request) == [b"x", b"", b""]
    codes = [item.fault and item.fault.code for item in request.items]
    assert codes == [None, "invalid_base64", "invalid_data"]


def test_base64_as_people_write_it() -> None:
    """Without padding, for addresses (RFC 4648, section 5), and in lines as `base64` wraps it."""
    data = bytes(range(256)) * 2
    plain, urls = base64.b64encode(data), base64.urlsafe_b64encode(data)
    wrapped = base64.encodebytes(data)
    for text in (
        *(plain, plain.rstrip(b"="), urls, urls.rstrip(b"="), wrapped),
        *(wrapped.replace(b"\n", b"\r\n"), b" " + plain + b"\t", plain.replace(b"=", b"\n=")),
        *(b"data:image/png;base64," + wrapped, plain + b"=="),
    ):
        assert images(read({"body": {"data": text.decode()}}, JSON)) == [data], text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("eA==&", "character 5 is '&'"),
        ("&", "character 1 is '&'"),
        ("eA==eA==", "character 5 is 'e'"),
        ("data:image/png;base64,eAé", "character 25 is '\\xe9'"),
        ("e\nA\0", "character 4 is '\\x00'"),
        ("eAAAe", "ends amid a byte"),
    ],
)
def test_what_is_no_base64_is_told_where_it_breaks(text: str, told: str) -> None:
    (item,) = read({"body": {"data": text}}, JSON).items
    assert item.fault and item.fault.code == "invalid_base64" and told in item.fault.message


def packed(data: bytes, wbits: int) -> bytearray:
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return bytearray(compressor.compress(data) + compressor.flush())


def test_a_packed_body_is_unpacked() -> None:
    """By each of RFC 9110's names, section 8.4.1; two members of gzip are one body."""
    body = json.dumps({"data": base64.b64encode(b"x").decode(), "top_k": 1}).encode()
    two = bytearray(gzip.compress(body[:5]) + gzip.compress(body[5:]))
    for coding, row in (
        *(("gzip", packed(body, 31)), ("x-gzip", packed(body, 31)), (" GZip ", two)),
        *(("deflate", packed(body, 15)), ("identity", bytearray(body)), ("", bytearray(body))),
    ):
        request = read({"body": row}, JSON | {"content-encoding": coding})
        assert (images(request), options(request).top_k) == ([b"x"], 1), coding
    assert images(read({"body": packed(b"x", 31)}, {"content-encoding": "gzip"})) == [b"x"]


@pytest.mark.parametrize(
    ("body", "coding", "status", "code"),
    [
        (b"x", "br", 415, "unsupported_encoding"),
        (packed(b"x", 31), "gzip, gzip", 415, "unsupported_encoding"),
        (b"x", "gzip", 400, "invalid_encoding"),
        (b"", "gzip", 400, "invalid_encoding"),
        (packed(b"x", 31)[:-4], "gzip", 400, "invalid_encoding"),
        (packed(b"x", 31) + b"x", "gzip", 400, "invalid_encoding"),
        (packed(b"", 31) * 100_000, "gzip", 400, "invalid_encoding"),
        (packed(bytes(40_000_000), 31), "gzip", 413, "body_too_large"),
        (packed(bytes(5_000_000), 31) * 20, "gzip", 413, "body_too_large"),
    ],
)
def test_a_packed_body_is_bounded(body: bytes, coding: str, status: int, code: str) -> None:
    tracemalloc.start()
    fault = refused({"body": bytearray(body)}, {"content-encoding": coding})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (fault.status, fault.code) == (status, code) and peak < 20_000_000


@pytest.mark.parametrize(
    ("row", "headers", "code"),
    [
        ({}, {}, "empty_request"),
        ({"body": bytearray()}, {}, "empty_request"),
        ({"data": bytearray()}, {}, "empty_request"),
        ({"tta": bytearray(b"none")}, {}, "empty_request"),
        ({"body": {"data": []}}, JSON, "empty_request"),
        ({"body": {}}, JSON, "empty_request"),
        ({"body": bytearray(b"{")}, JSON, "invalid_json"),
        ({"body": bytearray(b"[" * 100_000)}, JSON, "invalid_json"),
        ({"body": bytearray(b"\xff")}, JSON, "invalid_json"),
        ({"body": ["eA=="]}, JSON, "invalid_json"),
        ({"body": bytearray(b"7")}, JSON, "invalid_json"),
    ],
)
def test_what_is_no_request_is_a_400(
    row: dict[str, Any], headers: dict[str, str], code: str
) -> None:
    error = refused(row, headers)
    assert (error.status, error.code) == (400, code)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tta", b"twelve_crop"),
        ("top_k", b"0"),
        ("top_k", b"many"),
        ("top_k", b"1.5"),
        ("threshold", b"1.1"),
        ("threshold", b"-0.1"),
        ("threshold", b"nan"),
        ("topk", b"3"),
        ("tta", b"\xff"),
    ],
)
def test_a_bad_option_is_named(name: str, value: bytes) -> None:
    error = refused({"data": bytearray(b"x"), name: bytearray(value)})
    assert (error.status, error.code) == (400, "invalid_option")
    assert name in error.message


def test_an_unknown_header_option_is_named() -> None:
    error = refused({"body": bytearray(b"x")}, {"x-classify-colour": "red"})
    assert error.code == "invalid_option"
    assert "colour: unknown option" in error.message


def test_an_option_given_twice_is_refused() -> None:
    error = refused({"data": bytearray(b"x"), "top_k": [bytearray(b"1"), bytearray(b"2")]})
    assert error.code == "invalid_option"


def test_too_many_images_are_a_413() -> None:
    error = refused({"data": [bytearray(b"x")] * 5})
    assert (error.status, error.code) == (413, "too_many_images")


def test_an_image_in_another_field_is_told_where_it_belongs() -> None:
    fault = refused({"file": bytearray(b"\x89PNG" + bytes(200)), "top_k": bytearray(b"3")})
    assert (fault.status, fault.code) == (400, "invalid_option")
    assert fault.message == "file: unknown option; an image belongs in the field data."


@pytest.mark.parametrize("body", [bytearray(b"top_k=zero"), [bytearray(b"a"), bytearray(b"b")]])
def test_a_forms_part_called_body_is_no_body(body: object) -> None:
    """It hid the other parts, and two of them were a 500."""
    form = {"content-type": "Multipart/Form-Data; boundary=b"}
    length = {"inference-header-content-length": "1"}
    for headers in (form, form | length):
        error = refused({"body": body, "data": bytearray(b"x")}, headers)
        assert (error.status, error.code) == (400, "invalid_option")
        assert "body: unknown option" in error.message
        error = refused({"body": body, "top_k": bytearray(b"zero")}, headers)
        assert (error.status, error.code) == (400, "invalid_option")
        alone = read({"body": body, "top_k": bytearray(b"1")}, headers)
        assert images(alone) == (body if isinstance(body, list) else [body])
        assert options(alone).top_k == 1
