"""Version 2 of the Open Inference Protocol, with its binary tensor data extension.

Source: https://github.com/kserve/open-inference-protocol
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionserve.answer import Outcome, Prediction
from visionserve.errors import RequestError
from visionserve.protocols.reply import OK, Reply, check_count, errors_of, failure, message_of

LENGTH_HEADER = "inference-header-content-length"
MAX_DIGITS = 9
MAX_RANK, MAX_SIDE = 8, 2**31
BINARY_OUTPUT, BINARY = "binary_data_output", "binary_data"
MISSING: Prediction = {"label": "", "name": "", "class_id": -1, "probability": 0.0}

# Each output's datatype, and how its values are read from a prediction, or from an outcome.
PREDICTION_TENSORS: dict[str, tuple[str, Callable[[Prediction], Any]]] = {
    "label": ("BYTES", lambda prediction: prediction["label"]),
    "class_id": ("INT64", lambda prediction: prediction["class_id"]),
    "probability": ("FP32", lambda prediction: prediction["probability"]),
    "name": ("BYTES", lambda prediction: prediction.get("name", prediction["label"])),
    "explanation": ("BYTES", lambda prediction: json.dumps(prediction.get("explanation"))),
}
IMAGE_TENSORS: dict[str, tuple[str, Callable[[Outcome], Any]]] = {
    "confident": ("BOOL", lambda o: not isinstance(o, RequestError) and o["confident"]),
    "labels": ("BYTES", lambda o: json.dumps(_labels(o), ensure_ascii=False)),
    "plausible": ("INT64", lambda o: -1 if isinstance(o, RequestError) else o.get("plausible", -1)),
    "hints": (
        "BYTES",
        lambda o: "" if isinstance(o, RequestError) else json.dumps(o.get("hints", [])),
    ),
    "unfamiliar": (
        "BOOL",
        lambda o: not isinstance(o, RequestError) and o.get("unfamiliar", False),
    ),
    "error": ("BYTES", lambda o: message_of(o) if isinstance(o, RequestError) else ""),
}
FEATURES = "features"
DEFAULT_OUTPUTS = ("label", "class_id", "probability")
ENCODED = {"INT64": "<i8", "FP32": "<f4", "BOOL": "?"}


class V2:
    """`{"inputs": [...]}` in, tensors of labels, class indices and probabilities out.

    The one input is a BYTES tensor of encoded images (base64 in JSON), or a UINT8 tensor of
    shape [height, width, 3], an RGB image, or [images, height, width, 3]. The request's
    `parameters` are options. A client may choose `outputs` among `PREDICTION_TENSORS`,
    `IMAGE_TENSORS` and `FEATURES`, which is the option of that name, too. The parameter
    `binary_data_output` asks for all of them as binary data after the JSON, and an output's
    parameter `binary_data` for that one.

    Args:
        body: the JSON object.
        binary: the input tensor's data, unless they are in the JSON.
        max_images: most images of a request.
    """

    def __init__(self, body: Mapping[str, Any], binary: bytes, max_images: int) -> None:
        self._body = body
        self._binary = binary
        self._max_images = max_images

    @classmethod
    def of_image(cls, image: bytes) -> Self:
        """Return the request of a body without JSON, the extension's "raw binary request"."""
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
        body = {"inputs": [tensor], "parameters": {BINARY_OUTPUT: True}}
        return cls(body, len(image).to_bytes(4, "little") + image, max_images=1)

    def fields(self) -> dict[str, Any]:
        """Return the images of the input tensor, and the parameters as options.

        Raises:
            RequestError: 400, the body has no single input tensor of these kinds, names an output
                that does not exist, or has an `id` that is no string; 413, it has too many images.
        """
        if not isinstance(self._body.get("id", ""), str):
            raise _invalid("id must be a string.")
        inputs, parameters = self._body["inputs"], self._body.get("parameters", {})
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(parameters, dict):
            raise _invalid("Give one tensor in inputs, and options in parameters.")
        known = [*PREDICTION_TENSORS, *IMAGE_TENSORS, FEATURES]
        outputs = set(self._outputs())
        if outputs - {*known}:
            raise _invalid(f"Unknown outputs; there are {', '.join(known)}.")
        options = {key: value for key, value in parameters.items() if key != BINARY_OUTPUT}
        options |= {FEATURES: True} if FEATURES in outputs else {}
        return options | {"data": self._images(inputs[0])}

    def reply(self, outcomes: Sequence[Outcome], many: bool, name: str, version: str) -> Reply:
        """Return tensors of shape [images, top_k], or [images, channels] of features.

        A multi-label model's `labels` are as many as an image has, so that they are one string for
        each image: a list in JSON, null for an image without an answer.

        The row of an image without an answer is filled with "", -1 and 0, and the tensor `error`
        has its message. The status is 200 even so, because clients of this protocol treat any
        other status as a failure of the whole request.
        """
        errors = errors_of(outcomes)
        if len(errors) == len(outcomes):
            return failure(errors[0])
        wanted = self._outputs()
        names, rows = [*wanted], _rows(outcomes)
        if any("labels" in outcome for outcome in outcomes if isinstance(outcome, dict)):
            names.append("labels")
        if any("explanation" in row[0] for row in rows):
            names.append("explanation")
        answers = [outcome for outcome in outcomes if not isinstance(outcome, RequestError)]
        if any(FEATURES in answer for answer in answers):
            names.append(FEATURES)
        if "unfamiliar" in names and not any("unfamiliar" in answer for answer in answers):
            return failure(_invalid("unfamiliar: the model has no threshold for these views."))
        if errors:
            names.append("error")
        tensors = {output: _tensor(output, outcomes, rows) for output in names}
        binary = [
            _pack(tensor)
            for output, tensor in tensors.items()
            if wanted.get(output, self._binary_output)
        ]
        body = {"model_name": name, "model_version": version, "outputs": [*tensors.values()]}
        body |= {"id": self._body["id"]} if "id" in self._body else {}
        return Reply(OK, body, b"".join(binary) if binary else None)

    @property
    def _binary_output(self) -> bool:
        return _flag(self._body.get("parameters", {}), BINARY_OUTPUT, False)

    def _outputs(self) -> dict[str, bool]:
        """Return the outputs that the client wants, each with whether it is to be binary."""
        outputs, binary = self._body.get("outputs") or [], self._binary_output
        if not isinstance(outputs, list):
            raise _invalid("outputs must be a list.")
        if not outputs:
            return dict.fromkeys(DEFAULT_OUTPUTS, binary)
        wanted = dict[str, bool]()
        for output in outputs:
            parameters = output.get("parameters", {}) if isinstance(output, dict) else {}
            wanted[_member(output, "name", str)] = _flag(parameters, BINARY, binary)
            if parameters.keys() - {BINARY}:
                raise _invalid(f"An output's one parameter is {BINARY}.")
        return wanted

    def _images(self, tensor: Any) -> list[Any]:
        shape, datatype = _member(tensor, "shape", list), _member(tensor, "datatype", str)
        if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n <= MAX_SIDE for n in shape):
            raise _invalid(f"A shape is a list of at most {MAX_RANK} sizes.")
        if datatype == "BYTES":
            check_count(math.prod(shape), self._max_images)
            images = tensor["data"] if "data" in tensor else self._strings()
            if not isinstance(images, list) or len(images) != math.prod(shape):
                raise _invalid(f"The data do not fill the shape {shape}.")
            return images
        if datatype == "UINT8" and len(shape) in (3, 4) and shape[-1] == 3:
            check_count(shape[0] if len(shape) == 4 else 1, self._max_images)
            return [_encoded(pixels) for pixels in self._pixels(tensor, shape)]
        raise _invalid(
            "An input must be BYTES, encoded images, or UINT8 of shape [height, width, 3] "
            "or [images, height, width, 3]."
        )

    def _strings(self) -> list[bytes]:
        """Split the binary data into strings: four bytes of length, little-endian, before each.

        One more than a request may have is enough to refuse it.
        """
        strings, position = list[bytes](), 0
        while position < len(self._binary) and len(strings) <= self._max_images:
            start = position + 4
            position = start + int.from_bytes(self._binary[position:start], "little")
            strings.append(self._binary[start:position])
        if position > len(self._binary):
            raise _invalid("The binary data end in the middle of a string.")
        return strings

    def _pixels(self, tensor: Mapping[str, Any], shape: list[int]) -> NDArray[np.uint8]:
        """Return pixels of shape [images, height, width, 3]."""
        try:
            if "data" in tensor:
                values = _numbers(tensor["data"]).reshape(shape)
            else:
                values = np.frombuffer(self._binary, np.uint8).reshape(shape)
            if not values.size:
                raise ValueError
        except ValueError:
            raise _invalid(f"The data are not values from 0 to 255 in the shape {shape}.") from None
        return values.reshape(-1, *shape[-3:])


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image as BMP, which is lossless, so that it passes the checks of any image."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


def _numbers(given: Any) -> NDArray[np.uint8]:
    """Return the numbers of a list, or of lists in it.

    They are looked at one by one, as NumPy would make room for the longest string in the place of
    each of them.

    Raises:
        ValueError: there is anything else than integers from 0 to 255.
    """
    found = np.asarray(given, dtype=object).ravel()
    if not all(type(value) is int and 0 <= value <= 255 for value in found):
        raise ValueError
    return found.astype(np.uint8)


def split(body: bytes, length: str) -> tuple[bytes, bytes]:
    """Split a body of the binary tensor data extension into its JSON and its binary data.

    Args:
        body: the request's body.
        length: the header `Inference-Header-Content-Length`, the number of bytes of the JSON.

    Raises:
        RequestError: 400, the header is not a number, or larger than the body.
    """
    if not length.isdecimal() or len(length) > MAX_DIGITS or int(length) > len(body):
        raise _invalid(f"The header {LENGTH_HEADER} does not fit the body.")
    return body[: int(length)], body[int(length) :]


def metadata(name: str, versions: Sequence[str], platform: str, features: bool) -> dict[str, Any]:
    """Describe a model as the protocol does: -1 is a size that differs from request to request.

    Args:
        name: the model's name in the server.
        versions: its versions there.
        platform: the inference engine.
        features: whether its answers may have features.

    Returns:
        A JSON object. The input is the one that every image has; pixels go in by the same name.
        The outputs are those that a client may ask for by their names alone.
    """
    outputs = {
        **{key: (kind, [-1, -1]) for key, (kind, _) in PREDICTION_TENSORS.items()},
        **{key: (kind, [-1]) for key, (kind, _) in IMAGE_TENSORS.items()},
        **({FEATURES: ("FP32", [-1, -1])} if features else {}),
    }
    del outputs["explanation"]
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform,
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": key, "datatype": kind, "shape": shape}
            for key, (kind, shape) in outputs.items()
        ],
    }


def _tensor(
    name: str, outcomes: Sequence[Outcome], rows: Sequence[Sequence[Prediction]]
) -> dict[str, Any]:
    if name == FEATURES:
        known = [[] if isinstance(o, RequestError) else o["features"] for o in outcomes]
        channels = max(map(len, known))
        datatype, shape = "FP32", [len(known), channels]
        data = [*chain.from_iterable(row or [0.0] * channels for row in known)]
    elif name in IMAGE_TENSORS:
        datatype, read_outcome = IMAGE_TENSORS[name]
        shape, data = [len(outcomes)], [read_outcome(outcome) for outcome in outcomes]
    else:
        datatype, read_prediction = PREDICTION_TENSORS[name]
        shape = [len(rows), len(rows[0])]
        data = [read_prediction(prediction) for row in rows for prediction in row]
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def _pack(tensor: dict[str, Any]) -> bytes:
    """Take a tensor's data out of its JSON: numbers are little-endian, strings as in requests."""
    data = tensor.pop("data")
    if tensor["datatype"] == "BYTES":
        strings = [value.encode() for value in data]
        packed = b"".join(len(text).to_bytes(4, "little") + text for text in strings)
    else:
        packed = np.array(data, ENCODED[tensor["datatype"]]).tobytes()
    tensor["parameters"] = {"binary_data_size": len(packed)}
    return packed


def _rows(outcomes: Sequence[Outcome]) -> list[list[Prediction]]:
    """Return each image's predictions, as many for an error as for an answer."""
    rows = [[] if isinstance(o, RequestError) else o["predictions"] for o in outcomes]
    top_k = max(len(row) for row in rows)
    return [row or [MISSING] * top_k for row in rows]


def _labels(outcome: Outcome) -> list[str] | None:
    return None if isinstance(outcome, RequestError) else outcome.get("labels")


def _member(tensor: Any, name: str, kind: type) -> Any:
    if not isinstance(tensor, dict) or not isinstance(tensor.get(name), kind):
        raise _invalid(f"Each tensor must have a {name}.")
    return tensor[name]


def _flag(parameters: Any, name: str, default: bool) -> bool:
    value = parameters.get(name, default) if isinstance(parameters, dict) else None
    if not isinstance(value, bool):
        raise _invalid(f"parameters must be an object, and {name} in it true or false.")
    return value


def _invalid(message: str) -> RequestError:
    return RequestError(400, "invalid_data", message)
