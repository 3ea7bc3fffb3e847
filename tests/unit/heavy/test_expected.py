"""An owner's own predictions: files that are read, refused, and compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from visionserve.classifier import Classifier
from visionserve.config import HandlerConfig
from visionserve.metadata import Metadata, Transforms
from visionserve.runtimes import Runtime
from visionserve_tools.archive import expected, serving
from visionserve_tools.archive.expected import ExpectationError, compare

LABELS = ("dog", "cat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, text: str | bytes, suffix: str = ".csv") -> Path:
    file = folder / f"expected{suffix}"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


ROWS = [
    json.dumps({"path": "a.png", "probabilities": {"cat": 0.25, "dog": 0.75}}),
    json.dumps({"path": "b.png", "probabilities": {"dog": 0.5, "cat": 0.5}}),
]


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("path,dog,cat\na.png,0.75,0.25\nb.png,0.5,0.5\n", ".csv"),
        ("\ufeffcat,path,dog\r\n0.25,a.png,0.75\r\n0.5,b.png,0.5\r\n\r\n", ".csv"),
        ("\n".join(ROWS), ".jsonl"),
        ("\n".join([*ROWS, "", ""]), ".JSONL"),
    ],
)
def test_all_probabilities_are_read_in_the_archives_order(
    folder: Path, text: str, suffix: str
) -> None:
    found = expected.read(write(folder, text, suffix))
    assert found.photographs == (folder / "a.png", folder / "b.png")
    assert found.arranged(LABELS).tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert found.arranged(LABELS[::-1]).tolist() == [[0.25, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("path,label,probability\na.png,dog,0.75\n", ".csv"),
        ('{"path": "a.png", "label": "dog", "probability": 0.75}', ".jsonl"),
    ],
)
def test_the_best_class_alone_is_enough(folder: Path, text: str, suffix: str) -> None:
    found = expected.read(write(folder, text, suffix)).arranged(LABELS)
    assert np.array_equal(found, [[0.75, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "suffix", "complaint"),
    [
        ("", ".csv", "takes columns"),
        ("path,dog,cat\n", ".csv", "holds no predictions"),
        ("path\na.png\n", ".csv", "takes columns"),
        ("dog,cat\n0.5,0.5\n", ".csv", "it has dog, cat"),
        ("path;dog;cat\na.png;0.5;0.5\n", ".csv", "it has path;dog;cat"),
        ("path,dog,dog\na.png,0.5,0.5\n", ".csv", "takes columns"),
        ("path,dog,cat\na.png,0.5\n", ".csv", "line 2: has not 3 fields"),
        ("path,dog,cat\na.png,0.5,0.5,1\n", ".csv", "line 2: has not 3 fields"),
        ('path,dog,cat\n"a.png,0.5,0.5', ".csv", "is no CSV"),
        (b"path,dog,K\xe4tzchen\na.png,1,0\n", ".csv", "is not UTF-8"),
        ("path,dog,cat\nz.png,1,0\n", ".csv", "line 2: there is no picture z.png"),
        ("path,dog,cat\n,1,0\n", ".csv", "line 2: there is no picture"),
        ("path,dog,cat\na.png,1,0\n./a.png,1,0\n", ".csv", "line 3: ./a.png stands in line 2"),
        ("path,dog,cat\na.png,nan,0\n", ".csv", "line 2: dog: nan is no probability"),
        ("path,dog,cat\na.png,,1\n", ".csv", "line 2: dog:  is no probability"),
        ("path,dog,cat\na.png,-1.5,4\n", ".csv", "-1.5 is no probability from 0 to 1; write"),
        ("path,dog,cat\na.png,75,25\n", ".csv", "75 is no probability"),
        ("{}", ".jsonl", "line 1: takes"),
        ("[1]", ".jsonl", "line 1: takes"),
        ("nonsense", ".jsonl", "line 1: takes"),
        ('{"path": "a.png", "probabilities": [0.5, 0.5]}', ".jsonl", "line 1: takes"),
        (
            ROWS[0] + '\n{"path": "b.png", "label": "dog", "probability": 1}',
            ".jsonl",
            "some rows have all probabilities",
        ),
        ("path,dog,cat\na.png,1,0\n", ".txt", "is neither a .csv nor a .jsonl"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_one_line(
    folder: Path, text: str | bytes, suffix: str, complaint: str
) -> None:
    file = write(folder, text, suffix)
    with pytest.raises(ValueError) as raised:
        expected.read(file)
    message = str(raised.value)
    assert message.startswith(str(file)) and complaint in message and "\n" not in message


def test_figures_that_do_not_sum_to_1_are_those_of_a_sigmoid_or_none(folder: Path) -> None:
    """Which of them, the network shows: see `tests/end_to_end/test_heads.py`."""
    found = expected.read(write(folder, "path,dog,cat\na.png,0.5,0.46\nb.png,0.9,0.8\n"))
    assert "line 3: the probabilities sum to 1.7, not 1; write those of softmax" in found.uneven
    assert not expected.read(write(folder, "path,dog,cat\na.png,0.5,0.46\n")).uneven
    assert not expected.read(write(folder, "path,label,probability\na.png,dog,0.7\n")).uneven


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path,dog,mouse\na.png,1,0\n", "the archive has no label mouse; it has dog, cat"),
        ("path,label,probability\na.png,mouse,1\n", "the archive has no label mouse"),
        ("path,dog\na.png,1\n", "has no probabilities of cat"),
    ],
)
def test_labels_are_the_archives(folder: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        expected.read(write(folder, text)).arranged(LABELS)


def test_the_figures_are_those_of_the_differences() -> None:
    """The second picture has another best class, and the third a tie."""
    theirs = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.405, 0.4, 0.195]])
    ours = np.array([[0.6, 0.1, 0.3], [0.3, 0.5, 0.2], [0.395, 0.41, 0.195]])
    found = compare(ours, theirs)
    assert found.photographs == 3 and found.agreement == pytest.approx(2 / 3)
    assert found.mean_difference == pytest.approx((0.1 + 0.2 + 0.01) / 3)
    assert found.largest_difference == pytest.approx(0.2)
    best = np.where(theirs == theirs.max(axis=1, keepdims=True), theirs, np.nan)
    assert compare(ours, best).mean_difference == pytest.approx(found.mean_difference)
    assert compare(ours, best).agreement == pytest.approx(1 / 3)


class Sure(Runtime):
    """A runtime of two classes that is as sure as it is told."""

    capacity = 16

    def __init__(self, dog: float) -> None:
        self._row = np.array([dog, 1 - dog], np.float32)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.tile(self._row, (len(pixels), 1))


def serve(dog: float, config: HandlerConfig) -> Classifier:
    metadata = Metadata(
        architecture="",
        weights="",
        weights_sha256="",
        artifact="",
        transforms=Transforms(),
        categories=LABELS,
    )
    return Classifier(Sure(dog), metadata, config, "1.0")


@pytest.mark.parametrize(
    ("handler", "allowed", "refused"),
    [
        ({}, 0.7455, 0.7475),
        ({"precision": "int8"}, 0.80, 0.81),
        ({"precision": "int8", "decode": "fast"}, 0.81, 0.82),
    ],
)
def test_an_archive_with_other_answers_is_refused_and_the_worst_pictures_are_named(
    folder: Path, handler: dict[str, Any], allowed: float, refused: float
) -> None:
    config = HandlerConfig(**handler)
    wanted = expected.read(write(folder, "path,dog,cat\na.png,0.746,0.254\nb.png,0.745,0.255\n"))
    assert serving.check(serve(allowed, config), wanted, config).photographs == 2
    with pytest.raises(ExpectationError, match=r"would not answer.* Worst: \S+b\.png \(dog 0\.745"):
        serving.check(serve(refused, config), wanted, config)


def test_a_picture_that_would_be_refused_is_named(folder: Path) -> None:
    config = HandlerConfig(max_image_pixels=10)
    wanted = expected.read(write(folder, "path,dog,cat\na.png,0.75,0.25\n"))
    with pytest.raises(ValueError, match=r"a\.png: would not be served\. The image has over 10"):
        serving.check(serve(0.75, config), wanted, config)
