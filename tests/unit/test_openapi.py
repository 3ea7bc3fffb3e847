"""The description of nginx's addresses for programs."""

from visionserve_tools.server import openapi


def test_the_description_is_todays() -> None:
    text = openapi.FILE.read_text(encoding="utf-8")
    assert '"default"' not in text, "Generated clients send it, and the profile's does not count."
    assert text == openapi.encoded(), "visionserve openapi writes it anew."


def test_codes_are_those_of_the_sources() -> None:
    found = openapi.codes()
    assert {"unsupported_format", "unsupported_encoding"} <= {*found[415]}
    assert {"too_many_pixels", "body_too_large"} <= {*found[413]}
    assert {"query_not_supported", "invalid_base64"} <= {*found[400]}
    assert {404, 405, 422, 429, 502, 504, 507} <= {*found}
