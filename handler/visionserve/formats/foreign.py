"""What a file is that is of no format that is read: its name, for the message."""

from visionserve.errors import RequestError
from visionserve.formats import raw_photograph, unsupported_format

# Where a signature begins, the signature, and what has it.
RAW = (
    (0, b"FUJIFILMCCD-RAW", "Fujifilm's RAF"),
    (0, b"IIU\0", "Panasonic's RW2"),
    *((0, start, "Olympus's ORF") for start in (b"IIRO", b"IIRS", b"MMOR")),
    (0, b"FOVb", "Sigma's X3F"),
    (0, b"\0MRM", "Minolta's MRW"),
    (4, b"ftypcrx ", "Canon's CR3"),
    (6, b"HEAPCCDR", "Canon's CRW"),
)
OTHERS = (
    *((0, start, "A JPEG XL") for start in (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    *((0, start, "A JPEG 2000") for start in (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    (0, b"II\xbc\x01", "A JPEG XR"),
    (0, b"8BPS", "A Photoshop document"),
    (0, b"%PDF", "A PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\x8aMNG", "A MNG"),
    (0, b"\x8bJNG", "A JNG"),
    (0, b"qoif", "A QOI"),
    (0, b"v/1\x01", "An OpenEXR"),
    (0, b"#?RADIANCE", "A Radiance HDR"),
    (0, b"DDS ", "A DDS"),
    (0, b"gimp xcf", "A GIMP document"),
    (0, b"icns", "An icon of macOS"),
    (0, b"\0\0\1\0", "An icon of Windows"),
    (0, b"BPG\xfb", "A BPG"),
    (0, b"<svg", "An SVG"),
    *((4, b"ftyp" + brand, "A video") for brand in (b"isom", b"iso2", b"mp4", b"qt  ", b"M4V")),
)


def named(data: bytes) -> RequestError | None:
    """Return the error that names a format by its first bytes, or None."""
    for start, signature, name in RAW:
        if data.startswith(signature, start):
            return raw_photograph(name)
    for start, signature, name in OTHERS:
        if data.startswith(signature, start):
            return unsupported_format(name)
    return None
