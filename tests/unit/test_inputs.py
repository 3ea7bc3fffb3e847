"""Rows of TorchServe to requests."""

import base64
from typing import Any

import pytest

from visionserve import inputs
from visionserve.config import Options
from visionserve.errors import RequestError

DEFAULTS = Options(tta="five_crop", top_k=3, threshold=0.5)
JSON = {"content-type": "application/json"}


def read(row: dict[str, Any], headers: dict[str, str] | None = None) -> inputs.Request:
    return inputs.read(row, headers or {}, DEFAULTS, max_images=4)


def refused(row: dict[str, Any], headers: dict[str, str] | None = None) -> RequestError:
    request = read(row, headers)
    (fault,) = request.images
    assert isinstance(fault, RequestError) and not request.many
    return fault


def test_a_raw_body_is_one_image_with_the_defaults() -> None:
    request = read({"body": bytearray(b"x")})
    assert (request.images, request.options, request.many) == ([b"x"], DEFAULTS, False)


def test_form_fields_are_options() -> None:
    request = read({"data": bytearray(b"x"), "tta": bytearray(b"none"), "top_k": bytearray(b"5")})
    assert request.options == Options(tta="none", top_k=5, threshold=0.5)


def test_headers_are_options_and_fields_come_first() -> None:
    headers = {"x-classify-top-k": "7", "x-classify-threshold": "0.9", "user-agent": "x"}
    request = read({"data": bytearray(b"x"), "top_k": bytearray(b"2")}, headers)
    assert request.options == Options(tta="five_crop", top_k=2, threshold=0.9)


def test_several_parts_keep_their_order() -> None:
    request = read({"data": [bytearray(b"1"), bytearray(b"2")]})
    assert (request.images, request.many) == ([b"1", b"2"], True)


@pytest.mark.parametrize("decoded", [True, False])
def test_json_holds_base64_and_options(decoded: bool) -> None:
    text = base64.b64encode(b"x").decode()
    body = {"data": [text, f"data:image/png;base64,{text}"], "top_k": 1}
    row = {"body": body if decoded else bytearray(str(body).replace("'", '"').encode())}
    request = read(row, {"content-type": "application/json; charset=utf-8"})
    assert (request.images, request.many, request.options.top_k) == ([b"x", b"x"], True, 1)


def test_bad_base64_is_the_fault_of_that_image_alone() -> None:
    request = read({"body": {"data": ["eA==", "&", 5]}}, JSON)
    assert request.images[0] == b"x"
    codes = [image.code for image in request.images[1:] if isinstance(image, RequestError)]
    assert codes == ["invalid_base64", "invalid_data"]


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
    (fault,) = read({"file": bytearray(b"\x89PNG" + bytes(200)), "top_k": bytearray(b"3")}).images
    assert isinstance(fault, RequestError)
    assert (fault.status, fault.code) == (400, "invalid_option")
    assert fault.message == "file: an image is sent in the field data."
