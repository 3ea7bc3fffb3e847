"""What `model-config.yaml` and a request's options may say; anything else is an error."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

TTA = Literal["none", "five_crop", "ten_crop", "dense"]
Decode = Literal["exact", "fast"]
Engine = Literal["openvino", "pytorch"]
Precision = Literal["fp32", "fp16", "int8"]
Language = Literal["en", "zh"]
Positive = Annotated[int, Field(ge=1)]

PRECISIONS: dict[Engine, tuple[Precision, ...]] = {
    "openvino": ("fp32", "int8"),
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
        threshold: probability in [0, 1] under which the first prediction carries a warning.
        language: in which predictions are named beside their label, and the warning is written.
        explain: whether each prediction tells where in the photograph the model looked.
        format: `png` answers an explained image with its map drawn over it.
    """

    tta: TTA = "none"
    top_k: Positive = 3
    threshold: float = Field(default=0.5, ge=0, le=1)
    language: Language = "en"
    explain: bool = False
    format: Literal["json", "png"] = "json"


class CacheConfig(Strict):
    """A bounded cache of answers, shared by the workers of a machine.

    Attributes:
        directory: where it lives; a relative path starts at the server's temporary folder.
        size_mb: bound of its database, in megabytes; 0 turns the cache off.
    """

    directory: Path = Path("visionserve-cache")
    size_mb: int = Field(default=0, ge=0)


class HandlerConfig(Strict):
    """The `handler` section of `model-config.yaml`.

    Attributes:
        runtime: the inference engine; `openvino` on a CPU, `pytorch` on either device.
        precision: `fp32` for both; `int8` for openvino; `fp16` for pytorch on CUDA.
        threads: inference threads of a worker; derived from cores and workers when absent.
        decoders: threads of a worker that decode the images of a batch side by side; one on a
            CPU, and as many as `threads` beside a GPU, when absent.
        decode: `exact` equals torchvision's transforms; `fast` lets libjpeg shrink large
            photos, and resizes within two levels of them.
        max_image_bytes: largest encoded image, in bytes.
        max_image_pixels: largest image by its header, in pixels, and half of it for WebP; a larger
            one is never decoded. 24 million take at most 300 MB.
        max_images: most images in one request.
        max_work: most pixels times scans of a request's images together; a JPEG that is not
            progressive, and any other format, is of one scan. It lets the largest image of the
            most scans pass, alone.
        deadline_seconds: time in the worker after which the images of a batch that are left are
            not begun, in seconds; half of TorchServe's `responseTimeout` where that is less.
        slow_request_ms: time in the worker from which a request is logged, in milliseconds.
        defaults: options of a request that gives none.
        cache: the cache of answers.
    """

    runtime: Engine = "openvino"
    precision: Precision = "fp32"
    threads: Positive | None = None
    decoders: Positive | None = None
    decode: Decode = "exact"
    max_image_bytes: Positive = 5 * 1024 * 1024
    max_image_pixels: Positive = 24_000_000
    max_images: Positive = 32
    max_work: Positive = 2_400_000_000
    deadline_seconds: float = Field(default=8, gt=0)
    slow_request_ms: float = Field(default=1000, ge=0)
    defaults: Options = Options()
    cache: CacheConfig = CacheConfig()

    @model_validator(mode="after")
    def _precision_of_the_runtime(self) -> Self:
        if self.precision not in PRECISIONS[self.runtime]:
            raise ValueError(f"{self.runtime} has no precision {self.precision}.")
        return self


class ModelConfig(Strict):
    """A whole `model-config.yaml`: TorchServe's own keys, then `handler`.

    The names, units (seconds, milliseconds where the name says so) and meanings of the first
    keys are TorchServe's: https://pytorch.org/serve/configuration.html
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
        """Time that a batch may take before its last image is begun, in seconds."""
        return min(self.handler.deadline_seconds, self.responseTimeout / 2)

    @classmethod
    def load(cls, path: Path) -> "ModelConfig":
        """Read and check a file.

        Raises:
            pydantic.ValidationError: an unknown key or a bad value, named.
        """
        return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
