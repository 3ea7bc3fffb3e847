"""What an archive says about its model: architecture, weights, transforms and labels."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from visionserve.config import TTA, Activation, Language, Options, Precision, Probability, Strict

FILE = "metadata.json"
# The features of photographs that the method `neighbours` needs, in the same folder.
KNOWN = "familiarity.npy"
COLDEST, HOTTEST = 0.2, 5
Temperature = Annotated[float, Field(ge=COLDEST, le=HOTTEST)]
LONGEST = 1024
# A class is taken to be this probable at least where a group's map is a mean of its classes' maps:
# a group whose probability is 0 in FP32 has a map, too.
LEAST = 1e-30
Side = Annotated[int, Field(ge=1, le=LONGEST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Transforms(Strict):
    """Preprocessing that the weights were trained for.

    Attributes:
        resize: length of the image's shorter side after the resize, in pixels; or the height and
            width that every image is squashed to, whatever its proportions.
        crop: side of a square crop, in pixels, no larger than the resized image.
        interpolation: Pillow's name of the resampling filter.
        mean: one mean for each channel that the network takes, in the network's order, so for
            `bgr` blue's first; on the scale of `range`. One alone belongs to a network that takes
            one channel.
        std: standard deviations in the same order, on the same scale.
        range: what a channel's values 0 to 255 are scaled to before they are normalized.
        channels: what the network takes: colours in one order or the other, or grey (ITU-R 601, as
            Pillow's `convert("L")`), once or in three equal channels. An image turns grey before
            it is resized, and its channels are swapped after that, which makes no difference.
    """

    resize: Side | tuple[Side, Side] = 256
    crop: Side = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[Finite, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    range: Literal["0-1", "0-255"] = "0-1"
    channels: Literal["rgb", "bgr", "grey"] = "rgb"

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse what torchvision would pad, and numbers that belong to other channels or scales.

        Raises:
            ValueError: the crop is larger than the resized image, there are more or fewer means
                or standard deviations than channels, or a mean is beyond `range`.
        """
        shortest = self.resize if isinstance(self.resize, int) else min(self.resize)
        if self.crop > shortest:
            raise ValueError(
                f"a crop of {self.crop} is larger than the resized image ({shortest}), which "
                "would have to be padded"
            )
        counts = (1, 3) if self.channels == "grey" else (3,)
        if len(self.mean) not in counts or len(self.std) != len(self.mean):
            raise ValueError(f"{self.channels} takes a mean and a std for each channel")
        if not all(0 <= mean * self.scale <= 255 for mean in self.mean):
            raise ValueError(f"mean is on the scale of range, {self.range}")
        return self

    @property
    def scale(self) -> int:
        """How many levels of a pixel make one unit of `mean` and `std`."""
        return 255 if self.range == "0-1" else 1

    @property
    def colour(self) -> tuple[int, ...]:
        """The mean as a colour in RGB order, 0 to 255."""
        levels = tuple(round(self.scale * mean) for mean in self.mean) * (3 // len(self.mean))
        return levels[::-1] if self.channels == "bgr" else levels


class Proof(Strict):
    """How close the archive's model is to the same weights in PyTorch FP32.

    The builder compares the probabilities that both give for the same views, before they are
    averaged or tempered.

    Attributes:
        photographs: how many photographs were compared.
        views: how many views of them; none of these calibrated the model.
        mean_difference: mean of |p - p_fp32|, for the class that FP32 finds best; of a multi-label
            model, for the class whose mean is largest.
        largest_difference: maximum of the same; of a multi-label model, over all classes.
        agreement: share of the views, 0 to 1, whose best class is FP32's, or ties with it; of a
            multi-label model, whose labels are FP32's, but for those within a tie of their
            threshold.
        largest_sum_error: largest |sum of a view's probabilities - 1|; of a multi-label model, how
            far a probability lies outside 0 to 1.
        feature_cosine: mean cosine of a view's features and PyTorch's; None of a model without
            features.
        precision: what the archive's model computed in meanwhile; None from an earlier builder.
    """

    photographs: int
    views: int
    mean_difference: float
    largest_difference: float
    agreement: float
    largest_sum_error: float
    feature_cosine: float | None = None
    precision: Precision | None = None


class Proportion(Strict):
    """A share of right answers, 0 to 1, with its 95 % confidence interval."""

    value: float
    low: float
    high: float


Method = Literal["react+ash", "neighbours"]
Numbers = Literal["float", "int8", "int8 of half the range"]


class Threshold(Strict):
    """From which score on a picture is unfamiliar, in one TTA mode.

    Attributes:
        score: a picture whose features score less is unfamiliar.
        clip: the largest value of a feature, of the method `react+ash` alone.
        false_alarms: share of photographs of the classes that are called unfamiliar, of those that
            the threshold was not fitted on (cross-validation).
        caught: share of unfamiliar pictures that are called so.
    """

    score: Finite
    clip: Finite | None = None
    false_alarms: Proportion
    caught: Proportion


class Familiarity(Strict):
    """How the archive tells pictures that are probably of none of its classes.

    Attributes:
        method: see `visionserve.familiarity`.
        kept: share of the features that `react+ash` does not remove.
        numbers: the arithmetic that the thresholds were fitted in; another one moves the scores.
        thresholds: TTA mode to its threshold.
        about: a text that says what they were fitted on.
    """

    method: Method
    kept: float = 1
    numbers: Numbers
    thresholds: dict[TTA, Threshold]
    about: str


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
    top1: Proportion
    top1_damaged: Proportion
    augmented: bool


class Comparison(Strict):
    """How close the archive's answers are to its owner's own figures.

    The builder compares them on the owner's photographs, from their bytes to the probabilities,
    for one view and before they are tempered.

    Attributes:
        photographs: how many photographs were compared.
        mean_difference: mean of |p - p of the owner|, for the class that the owner finds best; of
            a multi-label model, for the class whose mean is largest.
        largest_difference: maximum of the same, over all classes that the owner gives.
        agreement: share of the photographs, 0 to 1, whose best class is the owner's, or ties with
            it; of a multi-label model, whose labels are the owner's, as in `Proof`.
    """

    photographs: int
    mean_difference: float
    largest_difference: float
    agreement: float


class SelfCheck(Strict):
    """What a worker holds a model's answers against when it loads; see `visionserve.self_check`.

    Attributes:
        sha256: SHA-256 in hex of the model's files, as `visionserve.self_check.sha256_of` makes it.
        difference: largest mean of |p - p of PyTorch FP32| that is allowed with `decode: exact`.
        agreement: smallest share of pictures with PyTorch's best class that is allowed, 0 to 1.
    """

    sha256: str
    difference: float
    agreement: float


class Metadata(Strict):
    """The archive's `metadata.json`.

    Attributes:
        architecture: a name in `visionserve.models.MODELS`.
        weights: where the weights come from, for people.
        weights_sha256: SHA-256 of the weights' file, in hex.
        artifact: file name of the model in the archive.
        transforms: the preprocessing.
        categories: labels in class-index order; with groups, the groups' names.
        groups: the classes of the network that each category is the sum of, by index; none where
            the categories are the network's classes.
        activation: what turns the network's outputs into probabilities: `softmax` into those of one
            class among all, `sigmoid` into each class's own, so that an image may have several
            labels, or none (multi-label).
        thresholds: of a multi-label model, in class-index order: the probability from which an
            image has the label. Otherwise empty.
        names: what people call the classes in each language that has names, in the same order.
        wordnet_ids: the classes' synsets in WordNet 3.0, such as `n02123045`, in the same order;
            none where the labels are not ImageNet's.
        temperatures: TTA mode to its temperature; 1 for a mode that has none. See
            `visionserve.postprocessing.temper`.
        plausible: TTA mode to the probability, after its temperature, below which a name is not
            worth showing; a mode that has none shows all names.
        familiarity: how unfamiliar pictures are told; None if nobody has fitted that.
        dense: whether the model has a fully convolutional form, which TTA `dense` needs.
        explains: whether its last layer is linear and follows a global pool, which explanations
            and features need.
        half_range: whether the weights use half of INT8's range, so that no processor's sums
            overflow; see `visionserve.processor`.
        bf16: whether `precision: auto` may mean BF16; not if that was too far from FP32.
        proof: how close the model is to its weights. The builder always writes it.
        training: what the weights were trained on, where `visionserve train` made them.
        comparison: how close its answers are to its owner's figures; None if nobody compared them.
        self_check: what a worker holds the model against; None from an earlier builder.
    """

    architecture: str
    weights: str
    weights_sha256: str
    artifact: str
    transforms: Transforms
    categories: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...] = ()
    activation: Activation = "softmax"
    thresholds: tuple[Probability, ...] = ()
    names: dict[Language, tuple[str, ...]] = Field(default_factory=dict)
    wordnet_ids: tuple[str, ...] = ()
    temperatures: dict[TTA, Temperature] = Field(default_factory=dict)
    plausible: dict[TTA, Probability] = Field(default_factory=dict)
    familiarity: Familiarity | None = None
    dense: bool = True
    explains: bool = True
    half_range: bool = False
    bf16: bool = True
    proof: Proof | None = None
    training: Training | None = None
    comparison: Comparison | None = None
    self_check: SelfCheck | None = None

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        """Refuse thresholds that are not one for each class, and groups of a multi-label model.

        Raises:
            ValueError: so it is.
        """
        if len(self.thresholds) != len(self.categories) * self.multi_label:
            raise ValueError("a multi-label model has one threshold for each class, others none")
        if self.multi_label and self.groups:
            raise ValueError("a multi-label model has no groups")
        return self

    @property
    def multi_label(self) -> bool:
        """Whether each class has a probability of its own."""
        return self.activation == "sigmoid"

    @property
    def outputs(self) -> int:
        """How many classes the network has."""
        return sum(map(len, self.groups)) or len(self.categories)

    def suited(self, options: Options) -> Options:
        """Return a profile's options, adapted to the model.

        `top_k` is at most the number of classes, and `five_crop` replaces a `dense` that the
        model does not have. A multi-label model has thresholds of its own.
        """
        top_k = min(options.top_k, len(self.categories))
        tta = options.tta if self.modes([options.tta]) else "five_crop"
        threshold = None if self.multi_label else options.threshold
        return options.model_copy(update={"top_k": top_k, "tta": tta, "threshold": threshold})

    def modes(self, wanted: Iterable[TTA]) -> list[TTA]:
        """Return the TTA modes that the model has, among the wanted ones."""
        return [mode for mode in wanted if self.dense or mode != "dense"]

    @classmethod
    def load(cls, directory: Path) -> "Metadata":
        """Read `metadata.json` of an unpacked archive."""
        return cls.model_validate_json((directory / FILE).read_bytes())
