"""What the service says about one image: the JSON that a client reads."""

import json
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from visionserve.config import TTA
from visionserve.errors import RequestError

Hint = Literal["dark", "blurred", "small", "poor_jpeg"]


class Explanation(TypedDict):
    """Where the model looked for one class.

    Attributes:
        method: the name of the method that made the map.
        grid: rows of numbers, what each position of the feature map adds to the class's logit.
        box: left, top, right and bottom of the view that the grid covers, in pixels of the
            upright photograph.
        orientation: how the photograph lies in its file, from 1 (upright) to 8 as in EXIF data; 1
            for TIFF, AVIF and HEIC, whatever they say, as who decodes them turns them.
    """

    method: str
    grid: list[list[float]]
    box: list[float]
    orientation: int


class Prediction(TypedDict):
    """One class.

    Attributes:
        label: the class's label.
        name: what people call the class in the request's language. English has no names beside
            labels, unless the archive was built with a map of them.
        class_id: the class's index.
        probability: from 0 to 1, rounded to six digits.
        explanation: present if the request asks for it.
    """

    label: str
    name: NotRequired[str]
    class_id: int
    probability: float
    explanation: NotRequired[Explanation]


class Answer(TypedDict):
    """A classified image.

    Attributes:
        model: the model's name in the server.
        architecture: the model's name in the registry.
        version: the archive's version.
        tta: the views whose probabilities were averaged.
        predictions: the most probable class first.
        confident: whether the first prediction's probability reaches the request's threshold. Of a
            multi-label model, whether there are `labels`; see
            `visionserve.postprocessing.is_sure`.
        labels: of a multi-label model: the labels whose probability reaches their threshold, the
            most probable first, also those that `predictions` has no place for.
        plausible: how many of the first predictions are worth showing, at least 1; present if the
            archive has a threshold for it.
        unfamiliar: whether the picture is probably of none of the model's classes; present if the
            archive has a threshold for the views.
        features: what the network's last layer sees, one number for each channel of its last
            feature map, averaged over windows and views and rounded to four digits; present if
            the request asks for it.
        warning: sentences for people, present if the answer is not confident, or unfamiliar.
        hints: faults of the picture that may explain it, present if there are any.
        cached: present, and true, if the answer comes from the cache.
        sample: the picture's id, by which a report names it; present if the server keeps samples.
    """

    model: str
    architecture: str
    version: str
    tta: TTA
    predictions: list[Prediction]
    confident: bool
    labels: NotRequired[list[str]]
    plausible: NotRequired[int]
    unfamiliar: NotRequired[bool]
    features: NotRequired[list[float]]
    warning: NotRequired[str]
    hints: NotRequired[list[Hint]]
    cached: NotRequired[bool]
    sample: NotRequired[str]


Outcome = Answer | RequestError


def to_json(value: Any) -> bytes:
    """Encode a value as JSON.

    Raises:
        ValueError: it holds a number that JSON cannot express, such as NaN.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
