"""No archive is written whose probabilities are not those of its weights."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.helpers import RANDOM, REAL, write_config
from visionserve.metadata import Metadata, Proof, Transforms
from visionserve.models import MODELS, FullyConvolutional
from visionserve.preprocessing import to_views
from visionserve.runtimes import Passed
from visionserve_tools import photos
from visionserve_tools.archive import convert, proof
from visionserve_tools.archive.proof import ProofError, Reference
from visionserve_tools.archive.recipe import Recipe, build

EXPECTED = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.405, 0.4, 0.195]], dtype=np.float32)
VIEWS = np.zeros((3, 224, 224, 3), dtype=np.uint8)
REFERENCE = Reference(2, (VIEWS[:1], VIEWS[1:]), (EXPECTED[:1], EXPECTED[1:]))


class Answers:
    """A runtime with answers of its own."""

    capacity = 16

    def __init__(self, *passed: NDArray[np.float32]) -> None:
        self._left = passed

    def passed(self, pixels: NDArray[np.uint8]) -> Passed:
        given = [rows[: len(pixels)] for rows in self._left]
        self._left = tuple(rows[len(pixels) :] for rows in self._left)
        return Passed(*given)


def test_the_figures_are_those_of_the_differences() -> None:
    """The second view has another best class; the third's two best are a tie."""
    found = np.array([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.395, 0.41, 0.2]], dtype=np.float32)
    figures = proof.prove(Answers(found).passed, REFERENCE)
    assert (figures.photographs, figures.views) == (2, 3)
    assert figures.mean_difference == pytest.approx((0.1 + 0.2 + 0.01) / 3, abs=1e-6)
    assert figures.largest_difference == pytest.approx(0.2, abs=1e-6)
    assert figures.agreement == pytest.approx(2 / 3)
    assert figures.largest_sum_error == pytest.approx(0.005, abs=1e-6)
    assert figures.feature_cosine is None
    features = np.array([[1, 0], [0, 2], [3, 3]], dtype=np.float32)
    known = replace(REFERENCE, features=(features[:1], features[1:]))
    figures = proof.prove(Answers(found, features[:, ::-1] * 7).passed, known)
    assert figures.feature_cosine == pytest.approx(1 / 3)
    assert proof.prove(Answers(found).passed, known).feature_cosine == 0


def test_views_are_those_of_the_worker() -> None:
    """Five crops of 224 × 224 pixels, then one dense view of 256 × 320."""

    class Dark(torch.nn.Module):
        activation = "softmax"
        dense = True
        linear = None

        def network(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.mean((1, 2, 3))
            return torch.stack([mean.log(), (255 - mean).log()], 1)

        def classify(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images).softmax(1)

    levels = Transforms(range="0-255", mean=(0,) * 3, std=(1,) * 3)
    photograph = Image.new("RGB", (682, 512), (255, 0, 0))
    reference = proof.refer(Dark(), [photograph], levels)  # type: ignore[arg-type]
    assert [views.shape[:3] for views in reference.views] == [(5, 224, 224), (1, 256, 320)]
    assert all(np.allclose(answers, [1 / 3, 2 / 3]) for answers in reference.probabilities)


@pytest.mark.parametrize("fault", ["normalize", "resize"])
def test_a_fault_of_our_own_preprocessing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """PyTorch's figures do not share it."""
    if fault == "normalize":
        monkeypatch.setattr(
            FullyConvolutional, "normalize", lambda _, x: x.permute(0, 3, 1, 2) / 255
        )
    else:
        monkeypatch.setattr(
            "visionserve_tools.archive.proof.to_views",
            lambda image, *rest: to_views(ImageOps.flip(image), *rest),
        )
    with pytest.raises(ProofError, match="in the mean"):
        few = photos.greeting().parent
        recipe = Recipe(REAL, REAL, "1.0", write_config(tmp_path), calibration=few)
        build(recipe, tmp_path / "store", force=True)
    assert not any((tmp_path / "store").glob("*"))


GOOD = {
    "photographs": 10,
    "views": 60,
    "mean_difference": 0.0,
    "largest_difference": 0.0,
    "agreement": 1.0,
    "largest_sum_error": 0.0,
}


@pytest.mark.parametrize(
    ("precision", "figure", "allowed", "refused"),
    [
        ("int8", "mean_difference", 0.059, 0.061),
        ("int8", "agreement", 0.9, 0.89),
        ("int8", "largest_sum_error", 0.0009, 0.0011),
        ("int8", "mean_difference", 0.0, float("nan")),
        ("bf16", "mean_difference", 0.012, 0.0121),
        ("bf16", "agreement", 0.99, 0.98),
        ("bf16", "feature_cosine", 0.996, 0.994),
        ("fp32", "mean_difference", 0.0009, 0.0011),
        ("fp32", "agreement", 1.0, 0.99),
        ("fp32", "feature_cosine", 0.99991, 0.9998),
        ("int8", "feature_cosine", None, float("nan")),
    ],
)
def test_what_is_refused(
    precision: str, figure: str, allowed: float | None, refused: float
) -> None:
    proof.check(Proof.model_validate(GOOD | {figure: allowed}), precision)  # type: ignore[arg-type]
    with pytest.raises(ProofError, match="60 views of 10 photographs"):
        proof.check(Proof.model_validate(GOOD | {figure: refused}), precision)  # type: ignore[arg-type]


def test_an_archive_with_quantized_probabilities_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault itself: NNCF's default also quantizes the mean behind the softmax."""
    monkeypatch.setattr(convert, "behind_linear", lambda model: [])
    monkeypatch.setattr(convert, "CLOSE", 1)
    monkeypatch.setattr(convert, "SAMPLES", 4)
    config, cat = write_config(tmp_path, precision="int8"), photos.greeting()
    recipe = Recipe(REAL, REAL, "1.0", config, calibration=cat.parent)
    with pytest.raises(ProofError, match=r"0\.\d+ in the mean, .* sums off 1 by at most 0\.\d+"):
        build(recipe, tmp_path / "store", force=True)
    assert not any((tmp_path / "store").glob("*"))


def test_an_archive_carries_its_proof(store: Path) -> None:
    for name in (REAL, RANDOM):
        with zipfile.ZipFile(store / f"{name}.mar") as archive:
            figures = Metadata.model_validate_json(archive.read("metadata.json")).proof
        assert figures is not None and figures.views == 6 * figures.photographs > 0
        assert figures.mean_difference < 1e-4 and figures.agreement == 1
        assert figures.largest_sum_error < 1e-4
        assert figures.feature_cosine is not None and 0.99999 < figures.feature_cosine < 1.00001


def test_photographs_prove_that_did_not_calibrate() -> None:
    many = [Path(f"{index}.jpg") for index in range(100)]
    calibration, judges = convert.divide(many)
    assert len(judges) == 20 and sorted(calibration + judges) == sorted(many)
    assert convert.divide(many) == (calibration, judges)
    assert len(convert.divide(many * 5)[1]) == convert.LARGEST_PROOF
    few = many[:10]
    assert sorted(convert.divide(few)[0]) == sorted(convert.divide(few)[1]) == sorted(few)


def _bomb(path: Path) -> None:
    """A PNG of 400 million pixels in 50 kB."""
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


def _eps(path: Path) -> None:
    Image.new("RGB", (300, 300)).save(path, "EPS")


@pytest.mark.parametrize(
    ("make", "message"), [(_bomb, "over 80000000 pixels"), (_eps, "PostScript is not supported")]
)
def test_a_calibration_image_is_validated_as_a_clients(
    tmp_path: Path,
    random_weights: Path,
    make: object,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pillow's EPS plugin would run Ghostscript on it, whatever its name."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    make(folder / "bad.jpg")  # type: ignore[operator]
    config = write_config(tmp_path, precision="int8")
    recipe = Recipe("resnet18", "r", "1.0", config, random_weights, calibration=folder)
    with pytest.raises(ValueError, match=rf"bad\.jpg: .*{message}"):
        build(recipe, tmp_path / "store")
    assert not any((tmp_path / "store").glob("*"))
    told = capsys.readouterr().err
    assert f"{folder}: 1 photographs; " in told
    assert "that of ResNet18_Weights.IMAGENET1K_V1 is assumed" in told
    assert photos.folder(folder) == [folder / "bad.jpg"]


@pytest.mark.parametrize(("name", "count"), [("resnet18", 1), ("efficientnet_lite0", 3)])
def test_first_convolutions_stay_in_fp32_while_they_are_cheap(name: str, count: int) -> None:
    """ResNet-18's stem does 6.5 % of its multiplications, and the next layer as many again."""
    module = FullyConvolutional(name, 10, MODELS[name].transforms).eval()
    assert len(convert.first_convolutions(convert.to_openvino(module, 224), 224)) == count
