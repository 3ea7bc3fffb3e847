"""Into which buckets a picture and its answer fall, so that counters show a stream that changes.

Four properties, each in a few buckets of which the reference stream fills about as much: what a
lens, a light or a compression changes shows in luminance and sharpness, and what the pictures show
in the classes and in the share of unfamiliar ones. No picture is kept for it.
"""

from bisect import bisect
from typing import Literal

from visionserve.answer import Answer
from visionserve.trace import Look

Property = Literal["luminance", "sharpness", "class", "unfamiliar"]

# Each bucket holds a tenth of 500 photographs of ImageNet, whose shorter side has 384 pixels, at
# the centre crop of EfficientNet-Lite0. Another model's crop shifts its tenths, which rules do not
# ask for: they compare a stream with its own past.
LUMINANCE = (163, 179, 192, 199, 207, 217, 226, 236, 249)
SHARPNESS = (0.769, 0.822, 0.859, 0.884, 0.901, 0.915, 0.927, 0.943, 0.961)
CLASSES = 20


def counts(classes: int) -> dict[Property, int]:
    """Return how many buckets each property has for a model of so many classes."""
    return {
        "luminance": len(LUMINANCE) + 1,
        "sharpness": len(SHARPNESS) + 1,
        "class": min(CLASSES, classes),
        "unfamiliar": 2,
    }


def buckets(look: Look, answer: Answer, classes: int) -> dict[Property, int]:
    """Return the bucket of each property, from 0.

    Args:
        look: what was measured of the picture.
        answer: its answer. Its most probable class counts, also of a multi-label model; and whether
            it is unfamiliar (1) or not (0), where the archive can tell.
        classes: how many the model has. Neighbours share a bucket, as they are often of one kind.
    """
    best = answer["predictions"][0]["class_id"]
    found: dict[Property, int] = {
        "luminance": bisect(LUMINANCE, look.highlight),
        "sharpness": bisect(SHARPNESS, look.bent),
        "class": best * CLASSES // max(CLASSES, classes),
    }
    if "unfamiliar" in answer:
        found["unfamiliar"] = int(answer["unfamiliar"])
    return found
