"""Models whose classes each have a probability of their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy.special import expit
from sklearn.metrics import f1_score, precision_recall_curve

from tests.helpers import encode
from visionserve import inputs
from visionserve.card import card, classes
from visionserve.classifier import Classifier
from visionserve.config import CacheConfig, HandlerConfig, Options
from visionserve.errors import RequestError
from visionserve.item import Item
from visionserve.metadata import Metadata, Transforms
from visionserve.postprocessing import temper
from visionserve.runtimes import Runtime
from visionserve_tools.archive import multi_label, thresholds
from visionserve_tools.archive.calibrated import Fitted
from visionserve_tools.batch.formats import Table
from visionserve_tools.batch.rows import row
from visionserve_tools.quality import labelled
from visionserve_tools.quality import thresholds as fitting

LABELS = ("dog", "cat", "bird", "beach")
IMAGE = encode(Image.new("RGB", (64, 64)))


class Fixed(Runtime):
    """A runtime with one answer for every view."""

    capacity = 16

    def __init__(self, *probabilities: float) -> None:
        self._row = np.array(probabilities, np.float32)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.tile(self._row, (len(pixels), 1))


def described(labels: tuple[str, ...] = LABELS, **others: Any) -> Metadata:
    return Metadata.model_validate(
        {
            **{"architecture": "", "weights": "", "weights_sha256": "", "artifact": ""},
            **{"transforms": Transforms(), "categories": labels, "activation": "sigmoid"},
            **{"thresholds": (0.5,) * len(labels), **others},
        }
    )


def ask(
    probabilities: tuple[float, ...],
    metadata: Metadata,
    tmp_path: Path | None = None,
    **options: Any,
) -> Any:
    cache = CacheConfig(directory=tmp_path, size_mb=1) if tmp_path else CacheConfig()
    classifier = Classifier(Fixed(*probabilities), metadata, HandlerConfig(cache=cache), "1.0")
    wanted = Options.model_validate(classifier.defaults.model_dump() | options)
    (outcome,) = classifier.classify([Item(IMAGE, wanted)])
    return outcome


@pytest.mark.parametrize("temperature", [0.2, 0.67, 1, 3])
def test_a_temperature_divides_each_logit(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 4, (20, 30)).astype(np.float32)
    tempered = temper(expit(logits), temperature, "sigmoid")
    assert np.abs(tempered - expit(logits.astype(float) / temperature)).max() < 1e-4
    edges = temper(np.array([0, 1], np.float32), temperature, "sigmoid")
    assert edges.tolist() == [0, 1]


def test_labels_are_those_that_reach_their_own_thresholds(tmp_path: Path) -> None:
    """The request's threshold replaces them, and a cached answer knows by which it was made."""
    metadata = described(thresholds=(0.9, 0.3, 0.5, 0.7))
    found = (0.8, 0.3, 0.4999999, 0.95)
    for _ in range(2):
        answer = ask(found, metadata, tmp_path)
        assert answer["labels"] == ["beach", "bird", "cat"], "0.4999999 is shown as 0.5"
        assert answer["confident"] and "warning" not in answer
        assert [one["label"] for one in answer["predictions"]] == ["beach", "dog", "bird"]
        assert ask(found, metadata, tmp_path, threshold=0.5)["labels"] == ["beach", "dog", "bird"]
        assert ask(found, metadata, tmp_path, threshold=0)["labels"] == [
            *("beach", "dog", "bird", "cat")
        ]
        none = ask(found, metadata, tmp_path, threshold=1)
        assert (none["labels"], none["confident"]) == ([], False)
        assert none["warning"] == (
            "No label reaches its threshold: treat the answer as a guess. "
            "The picture is dark. The picture is small."
        )
        assert none["hints"] == ["dark", "small"] and "hints" not in answer
        assert "plausible" not in none and "plausible" not in answer
    chinese = ask(found, metadata, tmp_path, threshold=1, language="zh")
    assert chinese["warning"] == "没有标签达到阈值，仅供参考。图片太暗。图片尺寸太小。"
    assert chinese["cached"]
    cool = described(thresholds=(0.9, 0.3, 0.5, 0.7), temperatures={"none": 0.5})
    assert ask(found, cool)["labels"] == ["beach", "dog", "bird"], "p² / (p² + (1 - p)²)"


@pytest.mark.parametrize(
    ("probability", "threshold", "labels", "confident"),
    [
        *((0.7, 0.5, ["defect"], True), (0.02, 0.5, [], True), (0.5, 0.5, ["defect"], True)),
        *((0.85, 0.8, ["defect"], True), (0.1, 0.8, [], True), (0.6, 0.8, [], False)),
        *((0.3, 0.2, ["defect"], True), (0.1, 0.2, [], True)),
    ],
)
def test_a_single_label_is_a_yes_or_a_no(
    probability: float, threshold: float, labels: list[str], confident: bool
) -> None:
    """Either is sure where its own probability reaches the threshold."""
    answer = ask((probability,), described(("defect",), thresholds=(threshold,)))
    assert (answer["labels"], answer["confident"]) == (labels, confident)
    (prediction,) = answer["predictions"]
    assert prediction == {"label": "defect", "class_id": 0, "probability": probability}


@pytest.mark.parametrize("broken", [float("nan"), -0.1, 1.1, float("inf")])
def test_what_is_no_probability_is_an_error(
    broken: float, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask((0.5, broken, 0.5, 0.5), described())
    assert isinstance(answer, RequestError) and answer.status == 500
    assert "The model's probabilities are not from 0 to 1." in caplog.text
    assert ask((1.0000001, 0, 1, 1), described())["labels"][0] == "dog", "rounding is no fault"


def test_a_threshold_of_its_own_is_for_multi_label_models_alone() -> None:
    softmax = described().model_copy(update={"activation": "softmax", "thresholds": ()})
    refused = ask((0.4, 0.3, 0.2, 0.1), softmax, threshold=None)
    assert isinstance(refused, RequestError) and refused.code == "invalid_option"
    with pytest.raises(ValidationError, match=r"defaults\.threshold has to be a number"):
        HandlerConfig(defaults=Options(threshold=None))
    for wrong in ({"thresholds": (0.5,)}, {"activation": "softmax"}, {"thresholds": (2.0,) * 4}):
        with pytest.raises(ValidationError):
            described(**wrong)
    shown = card("m", "1.0", described(thresholds=(0.9, 0.3, 0.5, 0.7)), HandlerConfig())
    assert shown["activation"] == "sigmoid" and shown["thresholds"]["cat"] == 0.3
    assert shown["options"]["threshold"]["default"] is None
    assert card("m", "1.0", softmax, HandlerConfig())["thresholds"] is None


def test_the_classes_of_a_model_have_names_and_what_they_sum_up() -> None:
    plain = described().model_copy(update={"activation": "softmax", "thresholds": ()})
    groups = ((0,), (1, 2), (3,), (4, 5, 6))
    found = classes(plain.model_copy(update={"groups": groups, "names": {"zh": tuple("狗猫鸟滩")}}))
    assert [one["sums"] for one in found] == [1, 2, 1, 3]
    assert found[1] == {"label": LABELS[1], "names": {"zh": "猫"}, "sums": 2}
    assert classes(described())[0] == {"label": LABELS[0], "names": {}}


def test_tensors_have_the_labels_of_each_image() -> None:
    body = {"inputs": [{"name": "i", "shape": [3], "datatype": "BYTES", "data": ["eA=="] * 3}]}
    request = inputs.read(
        {"body": bytearray(json.dumps(body).encode())},
        {"content-type": "application/json"},
        HandlerConfig(),
    )
    metadata = described(("狗", "cat", "bird", "beach"))
    outcomes = [ask((p, p, 0.1, 0), metadata) for p in (0.9, 0.1)]
    outcomes.append(RequestError(422, "corrupt_image", "The image is corrupt."))
    tensors = {
        one["name"]: one for one in request.form.reply(outcomes, True, "m", "1").body["outputs"]
    }
    assert list(tensors) == ["label", "class_id", "probability", "labels", "error"]
    assert (tensors["labels"]["datatype"], tensors["labels"]["shape"]) == ("BYTES", [3])
    assert tensors["labels"]["data"] == ['["狗", "cat"]', "[]", "null"]


def test_a_row_has_the_labels_in_one_column() -> None:
    answers = [ask((p, p, 0.6, 0), described()) for p in (0.9, 0.1)]
    answers.append(ask((0.1, 0.1, 0.1, 0.1), described()))
    rows = [row(Path("a.png"), answer, 1) for answer in answers]
    assert [one["labels"] for one in rows] == ["dog;cat;bird", "bird", ""]
    softmax = {key: value for key, value in answers[0].items() if key != "labels"}
    assert row(Path("a.png"), softmax, 1)["labels"] is None
    lines = [Table(1).encode(one).split("  ")[-1].strip() for one in rows]
    assert lines[0] == "dog;cat;bird (dog 90.0%)"
    assert lines[2] == "no label (dog 10.0%) (a guess: dark, small)"


def test_the_figures_are_those_of_the_worst_class_and_of_the_labels() -> None:
    """The second image's labels differ, and the third's only by a tie."""
    theirs = np.array([[0.9, 0.1], [0.6, 0.2], [0.505, 0.2]])
    ours = np.array([[0.8, 0.12], [0.3, 0.22], [0.495, 0.22]])
    close = multi_label.compare(ours, theirs, (0.5, 0.5))
    assert close.mean == pytest.approx((0.1 + 0.3 + 0.01) / 3)
    assert close.largest == pytest.approx(0.3) and close.agreement == pytest.approx(2 / 3)
    assert multi_label.compare(ours, theirs, (0.25, 0.5)).agreement == 1
    unknown = np.where(theirs > 0.5, theirs, np.nan)
    assert multi_label.compare(ours, unknown, (0.5, 0.5)).mean == pytest.approx(close.mean)
    assert np.isnan(multi_label.compare(ours * np.nan, theirs, (0.5, 0.5)).mean)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", "label,threshold\ncat,0.3\nbeach,1\n"),
        (".csv", "﻿Threshold, Label\n0.3, cat\n1,beach\n"),
        (".json", '{"beach": 1, "cat": 0.3}'),
    ],
)
def test_thresholds_are_read_and_others_stay(suffix: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / f"thresholds{suffix}"
    file.write_text(text, encoding="utf-8")
    assert thresholds.read(file, LABELS) == (0.5, 0.3, 0.5, 1)


@pytest.mark.parametrize(
    ("suffix", "text", "complaint"),
    [
        (".csv", "cat,0.3\n", "takes a CSV with the columns label and threshold, or"),
        (".csv", "label,threshold\nmouse,0.3\n", "the archive has no label mouse"),
        (".csv", "label,threshold\ncat,0.3\ncat,0.4\n", "cat stands there twice"),
        (".csv", "label,threshold\ncat,high\n", "cat: high is no threshold from 0 to 1"),
        (".csv", "label,threshold\ncat\n", "cat: None is no threshold"),
        (".json", '{"cat": 30}', "cat: 30 is no threshold"),
        (".json", '{"cat": true}', "cat: True is no threshold"),
        (".json", '{"cat": NaN}', "cat: nan is no threshold"),
        (".json", '{"cat": 0.1, "cat": 0.2}', "cat stands there twice"),
        (".json", "[0.5]", "takes a CSV"),
        (".json", "{", "takes a CSV"),
    ],
)
def test_other_thresholds_are_told_in_one_line(
    suffix: str, text: str, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / f"thresholds{suffix}"
    file.write_text(text)
    with pytest.raises(ValueError) as raised:
        thresholds.read(file, LABELS)
    assert complaint in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "path,labels\na.jpg,cat;dog\nb.jpg,\nc.jpg,beach\n",
        'labels,path,by\n"dog | cat",a.jpg,me\n,b.jpg,me\nbeach,c.jpg,me\n',
        "path;labels\na.jpg;dog|cat\nb.jpg;\nc.jpg;beach\n",
        "path,beach,bird,cat,dog\na.jpg,0,0,1,1\nb.jpg,0,0,0,0\nc.jpg,true,False,0,0.0\n",
    ],
)
def test_photographs_have_any_number_of_labels(text: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    found = labelled.read_multi_label(file, LABELS)
    assert [(path.name, labels) for path, labels in found] == [
        *(("a.jpg", (0, 1)), ("b.jpg", ()), ("c.jpg", (3,)))
    ]
    assert [path.name for path, _ in labelled.read_multi_label(file, LABELS, 1)] == ["a.jpg"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path,labels\na.jpg,dogs\n", "line 2: the model has no label 'dogs' (the closest is 'dog"),
        ("path,labels\na.jpg,dog\na.jpg,cat\n", "line 3: a.jpg stands in another line, too"),
        ("path,labels\n,dog\n", "line 2: has no path"),
        ("path,labels\na.jpg\n", "line 2: has not 2 fields"),
        ("file,labels\na.jpg,dog\n", "line 1: names no column path"),
        ("path,dog,cat,bird\na.jpg,1,0,0\n", "nor one for each label: beach"),
        ("path,dog,cat,bird,beach,sea\na.jpg,1,0,0,0,0\n", "nor one for each label: sea"),
        ("path,dog,cat,bird,beach\na.jpg,1,0,0,yes\n", "beach: yes is neither 1 nor 0"),
        ("path,labels\n", "names no images"),
    ],
)
def test_other_labels_are_told_in_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        labelled.read_multi_label(file, LABELS)
    assert complaint in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="gives several labels"):
        labelled.read_multi_label(tmp_path, LABELS)


def test_thresholds_have_the_best_f1_that_scikit_learn_finds() -> None:
    dice = np.random.default_rng(0)
    for digits in (6, 1):
        truth = dice.random((50, 8)) < dice.random(8)
        truth[:, 6], truth[:, 7] = True, False
        probabilities = np.round(0.4 * truth + 0.6 * dice.random((50, 8)), digits)
        for index, found in enumerate(fitting.fit(probabilities, truth)):
            shown, column = truth[:, index], probabilities[:, index]
            if index > 5:
                assert found == 0.5
                continue
            precision, recall, _ = precision_recall_curve(shown, column)
            best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-9))
            assert f1_score(shown, column >= found) == pytest.approx(best)


def test_what_was_fitted_goes_into_multi_label_metadata_alone() -> None:
    named: dict[str, Any] = {"architecture": "", "weights_sha256": "", "about": ""}
    fitted = Fitted(**named, temperatures={"none": 2}, thresholds={"cat": 0.1, "dog": 0.2})
    put = Metadata.model_validate(fitted.put_into(described().model_dump()))
    assert put.thresholds == (0.2, 0.1, 0.5, 0.5) and put.temperatures == {"none": 2}
    softmax = described().model_dump() | {"activation": "softmax", "thresholds": ()}
    with pytest.raises(ValueError, match="give --activation sigmoid"):
        fitted.put_into(softmax)
    older = {key: value for key, value in softmax.items() if key != "thresholds"}
    kept = Fitted(**named, temperatures={"none": 2}).put_into(older)
    assert "thresholds" not in kept, "an older handler would refuse it"
    softmaxed = Fitted(**named, temperatures={"none": 2}, plausible={"none": 0.1})
    with pytest.raises(ValueError, match="No thresholds were fitted: run visionserve calibrate"):
        softmaxed.put_into(described().model_dump())


def test_groups_are_of_a_softmax_alone() -> None:
    with pytest.raises(ValidationError, match="a multi-label model has no groups"):
        described(groups=((0,), (1,), (2,), (3,)))
