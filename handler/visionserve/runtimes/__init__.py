"""Inference engines with one interface, `base.Runtime`."""

from pathlib import Path

from visionserve import processor
from visionserve.config import HandlerConfig
from visionserve.metadata import Metadata
from visionserve.runtimes.base import Linear, Passed, Runtime

__all__ = ["Linear", "Passed", "Runtime", "load"]


def load(
    directory: Path, metadata: Metadata, config: HandlerConfig, gpu_id: int | None, threads: int
) -> Runtime:
    """Load the archive's model on its device. Only the engine that it needs is imported.

    Args:
        directory: where the archive's files are.
        metadata: the archive's `metadata.json`.
        config: names the engine and the precision; see `visionserve.processor.precision`.
        gpu_id: CUDA device index; None for the CPU.
        threads: inference threads on the CPU.
    """
    artifact = directory / metadata.artifact
    if config.runtime == "openvino":
        from visionserve.runtimes.openvino import OpenVINORuntime

        bf16 = processor.precision(config.precision, metadata.bf16) == "bf16"
        crop = metadata.transforms.crop
        return OpenVINORuntime(artifact, crop, threads, metadata.explains, bf16)
    from visionserve.runtimes.pytorch import PyTorchRuntime

    return PyTorchRuntime(artifact, metadata, gpu_id, config.precision == "fp16", threads)
