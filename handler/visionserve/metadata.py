"""What an archive says about its model: architecture, weights, transforms and labels."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from visionserve.config import TTA, Language, Options, Strict

FILE = "metadata.json"
COLDEST, HOTTEST = 0.2, 5
Temperature = Annotated[float, Field(ge=COLDEST, le=HOTTEST)]


class Transforms(Strict):
    """Preprocessing that the weights were trained for.

    Attributes:
        resize: length of the image's shorter side after the resize, in pixels.
        crop: side of a square crop, in pixels.
        interpolation: Pillow's name of the resampling filter.
        mean: per-channel mean in RGB order, on a scale of 0 to 1.
        std: per-channel standard deviation, on the same scale.
    """

    resize: int = 256
    crop: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class Proof(Strict):
    """How close the archive's model is to the same weights in PyTorch FP32.

    The builder compares the probabilities that both give for the same views, before they are
    averaged or tempered.

    Attributes:
        photographs: how many photographs were compared.
        views: how many views of them; none of these calibrated the model.
        mean_difference: mean of |p - p_fp32|, for the class that FP32 finds best.
        largest_difference: maximum of the same.
        agreement: share of the views, 0 to 1, whose best class is FP32's, or ties with it.
        largest_sum_error: largest |sum of a view's probabilities - 1|.
    """

    photographs: int
    views: int
    mean_difference: float
    largest_difference: float
    agreement: float
    largest_sum_error: float


class Share(Strict):
    """A share of right answers, 0 to 1, with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Training(Strict):
    """What `visionserve train` trained the weights on, and what they are worth.

    Attributes:
        method: whether only a new last layer was trained, or all layers.
        began_with: where the first weights came from, for people.
        date: the day, UTC, in ISO 8601.
        photographs: how many photographs of each class it was trained on.
        held_out: how many photographs of each class it was measured on alone.
        data_sha256: SHA-256 in hex over the sorted lines `CLASS<tab>SHA256` of all these files.
        top1: right answers among the photographs held out, by their centre crop.
        top1_damaged: the same, of severely damaged forms of them.
        augmented: whether damaged photographs, or AugMix, were a part of the training.
    """

    method: Literal["linear probe", "fine-tuning"]
    began_with: str
    date: str
    photographs: dict[str, int]
    held_out: dict[str, int]
    data_sha256: str
    top1: Share
    top1_damaged: Share
    augmented: bool


class Metadata(Strict):
    """The archive's `metadata.json`.

    Attributes:
        architecture: a name in `visionserve.models.MODELS`.
        weights: where the weights come from, for people.
        weights_sha256: SHA-256 of the weights' file, in hex.
        artifact: file name of the model in the archive.
        transforms: the preprocessing.
        categories: labels in class-index order.
        names: what people call the classes in each language that has names, in the same order.
        temperatures: TTA mode to its temperature; 1 for a mode that has none. See
            `visionserve.postprocessing.temper`.
        dense: whether the model has a fully convolutional form, which TTA `dense` needs.
        explains: whether its last layer is linear and follows a global pool, which explanations
            need.
        half_range: whether the weights use half of INT8's range, so that no processor's sums
            overflow; see `visionserve.processor`.
        proof: how close the model is to its weights. The builder always writes it.
        training: what the weights were trained on, where `visionserve train` made them.
    """

    architecture: str
    weights: str
    weights_sha256: str
    artifact: str
    transforms: Transforms
    categories: tuple[str, ...]
    names: dict[Language, tuple[str, ...]] = Field(default_factory=dict)
    temperatures: dict[TTA, Temperature] = Field(default_factory=dict)
    dense: bool = True
    explains: bool = True
    half_range: bool = False
    proof: Proof | None = None
    training: Training | None = None

    def suited(self, options: Options) -> Options:
        """Return a profile's options, adapted to the model.

        `top_k` is at most the number of classes, and `five_crop` replaces a `dense` that the
        model does not have.
        """
        top_k = min(options.top_k, len(self.categories))
        tta = options.tta if self.modes([options.tta]) else "five_crop"
        return options.model_copy(update={"top_k": top_k, "tta": tta})

    def modes(self, wanted: Iterable[TTA]) -> list[TTA]:
        """Return the TTA modes that the model has, among the wanted ones."""
        return [mode for mode in wanted if self.dense or mode != "dense"]

    @classmethod
    def load(cls, directory: Path) -> "Metadata":
        """Read `metadata.json` of an unpacked archive."""
        return cls.model_validate_json((directory / FILE).read_bytes())
