"""From compressed bodies and base64 to the bytes that a client meant."""

import base64
import binascii
import re
import zlib

from visionserve.errors import RequestError

CODINGS = ("gzip", "x-gzip", "deflate")
ANY_HEADER = 32 + zlib.MAX_WBITS  # zlib then tells gzip and deflate by their first bytes.

MEMBERS = 100  # Most parts of a gzip file; each is found by copying what follows it.

_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\t\r\n ]*[=\t\r\n ]*")
_PADDING = "=\t\r\n "
_STANDARD = str.maketrans("-_", "+/", _PADDING)


def unpack(body: bytes | bytearray, coding: str, most: int) -> bytes:
    """Decompress a body (RFC 9110, section 8.4.1).

    Args:
        body: the body as it was sent.
        coding: the header `Content-Encoding`; empty if there is none.
        most: how many bytes it may hold. No more than that are ever decompressed.

    Raises:
        RequestError: 415 `unsupported_encoding`, 400 `invalid_encoding`, the body is not whole or
            not of this coding, or 413 `body_too_large`.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return bytes(body)
    if coding not in CODINGS:
        raise RequestError(
            415, "unsupported_encoding", "A body's Content-Encoding is gzip, deflate or identity."
        )
    found, left = bytearray(), body
    for _ in range(MEMBERS):
        member = zlib.decompressobj(ANY_HEADER)
        try:
            found += member.decompress(left, most + 1 - len(found))
        except zlib.error:
            raise _invalid(coding) from None
        if len(found) > most:
            raise RequestError(
                413, "body_too_large", f"A body may hold {most} bytes once it is decompressed."
            )
        if not member.eof:
            raise _invalid(coding)
        left = member.unused_data
        if not left:
            return bytes(found)
    raise _invalid(coding)


def _invalid(coding: str) -> RequestError:
    return RequestError(400, "invalid_encoding", f"The body is no whole {coding}.")


def from_base64(text: str) -> bytes:
    """Decode base64 (RFC 4648), or a data URI that holds it.

    Both alphabets are read, with padding or without, in one line or in several.

    Raises:
        RequestError: 400 `invalid_base64`, which tells the first character that is in the way.
    """
    start = text.index(",") + 1 if text.startswith("data:") and "," in text else 0
    match = _BASE64.match(text, start)
    end = match.end() if match else start
    if end < len(text):
        raise RequestError(
            400,
            "invalid_base64",
            f"The image is not valid base64: its character {end + 1} is {text[end]!a}.",
        )
    try:
        return base64.b64decode(_padded(text[start:].translate(_STANDARD)), validate=True)
    except binascii.Error:
        message = "The image is not valid base64: it ends amid a byte. Is it cut off?"
        raise RequestError(400, "invalid_base64", message) from None


def _padded(letters: str) -> str:
    return letters + "=" * (-len(letters) % 4)
