"""The schema of `model-config.yaml` and of a request's options. Anything else is an error."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from visionserve.formats import FORMATS, Format

TTA = Literal["none", "five_crop", "ten_crop", "dense"]
Decode = Literal["exact", "fast"]
Engine = Literal["openvino", "pytorch"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Wanted = Literal["auto", Precision]
Language = Literal["en", "zh"]
Activation = Literal["softmax", "sigmoid"]
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Threshold = Annotated[
    Probability | None, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
]
MEBIBYTE = 1024 * 1024

PRECISIONS: dict[Engine, tuple[Wanted, ...]] = {
    "openvino": ("auto", "fp32", "bf16", "int8"),
    "pytorch": ("fp32", "fp16"),
}


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(Strict):
    """What a client may choose for one request.

    Attributes:
        tta: test-time augmentation, the views whose probabilities are averaged.
        top_k: number of predictions, from 1 to the number of classes.
        threshold: a probability from 0 to 1. An answer whose first prediction is below it is
            not confident, and has a warning. Of a multi-label model, it replaces each label's own
            threshold; None, its default there, keeps those.
        language: the language of the warning, and of the names beside labels.
        explain: whether each prediction says where in the photograph the model looked.
        features: whether an answer has the numbers that the network's last layer sees.
        format: `png` returns an explained image with its map drawn over it, in place of JSON.
    """

    tta: TTA = "none"
    top_k: Positive = 3
    threshold: Threshold = 0.5
    language: Language = "en"
    explain: bool = False
    features: bool = False
    format: Literal["json", "png"] = "json"


class CacheConfig(Strict):
    """A bounded cache of answers, shared by the workers of a machine.

    Attributes:
        directory: the cache's folder; a relative path starts at the server's temporary folder.
        size_mb: largest size of its database, in megabytes; 0 turns the cache off.
    """

    directory: Path = Path("visionserve-cache")
    size_mb: int = Field(default=0, ge=0)


class SamplesConfig(Strict):
    """Which pictures are kept with their answers; see `visionserve.sampling`. By default, none is.

    Attributes:
        directory: the samples' folder, which the workers of a server share; a relative path starts
            at the server's own folder, `.torchserve/PROFILE`.
        share: how much of all pictures is kept, from 0 to 1.
        uncertain: pictures are kept whose best match, or one of whose labels, has a probability
            that is no further than this from its threshold; 0 keeps none for that.
        unfamiliar: whether unfamiliar pictures are kept, where the archive can tell them.
        max_mb: largest size of all samples together, in megabytes; the oldest make room.
        days: after how many days a sample is removed.
    """

    directory: Path = Path("samples")
    share: Probability = 0
    uncertain: Probability = 0
    unfamiliar: bool = False
    max_mb: Positive = 500
    days: Positive = 30

    @property
    def on(self) -> bool:
        """Whether any picture is kept."""
        return self.share > 0 or self.uncertain > 0 or self.unfamiliar


class HandlerConfig(Strict):
    """The `handler` section of `model-config.yaml`.

    Attributes:
        runtime: the inference engine: `openvino` on a CPU, `pytorch` on a CPU or a GPU.
        precision: what the network computes in: `fp32` for both engines, `bf16` and `int8` for
            openvino, `fp16` for pytorch on CUDA. `bf16` is FP32 on a processor that does not
            multiply it; `auto` is BF16 where the processor does, and where the builder found it
            close enough, otherwise FP32. See `visionserve.processor.precision`.
        threads: inference threads of a worker; by default, cores divided by workers.
        decoders: threads of a worker that decode a batch's images side by side; by default, one
            on a CPU, and as many as `threads` beside a GPU.
        decode: `exact` equals torchvision's transforms bit for bit. `fast` lets libjpeg shrink
            large photographs, and resizes within two levels of `exact`.
        max_image_bytes: largest encoded image, in bytes. TorchServe, nginx, the page and `classify`
            follow it; see `max_body_bytes`.
        formats: the image formats that are read; the decoders of others are never loaded.
        max_image_pixels: largest image, in pixels, by its header; a WebP may have half as many. A
            larger one is never decoded. 24 million pixels take at most 300 MB.
        max_jpeg_pixels: largest JPEG, or HEIC in tiles, in pixels, by its header. One of more than
            `max_image_pixels` is decoded at half its size or less, within the same memory; a
            progressive JPEG may have fewer, 41 million without subsampled colours.
        max_images: most images in one request.
        max_work: most work of one request's images together, in pixels times scans; see
            `visionserve.validation.work`. The default lets a single JPEG of the most pixels and
            the most scans pass, if it is not coded arithmetically.
        max_answer_bytes: largest answer to a request, in bytes; at most TorchServe's
            `max_response_size`.
        deadline_seconds: seconds after a batch's arrival in the worker from which no further
            stage of an image is begun; at most half of TorchServe's `responseTimeout`.
        slow_request_ms: milliseconds in the worker from which a request is logged as slow.
        defaults: options of a request that sets none.
        cache: the cache of answers.
        self_check: what a worker does whose model computes otherwise on this machine than where it
            was built: it refuses to load, or warns and serves; see `visionserve.self_check`.
        samples: which pictures are kept with their answers.
    """

    runtime: Engine = "openvino"
    precision: Wanted = "fp32"
    threads: Positive | None = None
    decoders: Positive | None = None
    decode: Decode = "exact"
    max_image_bytes: Positive = 5 * MEBIBYTE
    formats: tuple[Format, ...] = Field(default=FORMATS, min_length=1)
    max_image_pixels: Positive = 24_000_000
    max_jpeg_pixels: Positive = 50_000_000
    max_images: Positive = 32
    max_work: Positive = 2_400_000_000
    max_answer_bytes: Positive = 6_553_500
    deadline_seconds: float = Field(default=8, gt=0)
    slow_request_ms: float = Field(default=1000, ge=0)
    defaults: Options = Options()
    cache: CacheConfig = CacheConfig()
    self_check: Literal["refuse", "warn"] = "refuse"
    samples: SamplesConfig = SamplesConfig()

    @property
    def max_body_bytes(self) -> int:
        """The largest body that servers in front of the handler have to let through.

        It holds one image of the most bytes as base64, in JSON, and whole mebibytes; 7 at least,
        which is what several images may have together.
        """
        return max(7, -(-(self.max_image_bytes * 4 // 3 + 65_536) // MEBIBYTE)) * MEBIBYTE

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        if self.precision not in PRECISIONS[self.runtime]:
            raise ValueError(f"{self.runtime} has no precision {self.precision}.")
        return self

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        if self.defaults.threshold is None:
            raise ValueError("defaults.threshold has to be a number.")
        return self


class ModelConfig(Strict):
    """A whole `model-config.yaml`: TorchServe's own keys, then `handler`.

    TorchServe defines its keys and their units: `maxBatchDelay` is in milliseconds, all other
    times are in seconds. See https://pytorch.org/serve/configuration.html
    """

    minWorkers: Positive = 1  # noqa: N815
    maxWorkers: Positive = 1  # noqa: N815
    batchSize: Positive = 1  # noqa: N815
    maxBatchDelay: Positive = 1  # noqa: N815
    responseTimeout: Positive = 30  # noqa: N815
    startupTimeout: Positive = 120  # noqa: N815
    jobQueueSize: Positive = 100  # noqa: N815
    maxRetryTimeoutInSec: Positive = 300  # noqa: N815
    deviceType: Literal["cpu", "gpu"] = "cpu"  # noqa: N815
    handler: HandlerConfig = HandlerConfig()

    @property
    def deadline(self) -> float:
        """Seconds after a batch's arrival from which no further stage of an image is begun."""
        return min(self.handler.deadline_seconds, self.responseTimeout / 2)

    @classmethod
    def of(cls, profile: Path) -> "ModelConfig":
        """Read and check the file of a profile's folder; it raises the same errors as `load`."""
        return cls.load(profile / "model-config.yaml")

    @classmethod
    def load(cls, path: Path) -> "ModelConfig":
        """Read and check a file.

        Raises:
            ValueError: the file is no UTF-8 or no YAML, or has an unknown key or a bad value, which
                is named.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: is no YAML ({' '.join(str(error).split())}).") from None
        try:
            return cls.model_validate(content or {})
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise ValueError(f"{path}: {place}: {fault['msg']}.") from None
