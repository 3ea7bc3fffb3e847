"""PyTorch on a CPU or a CUDA device."""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from visionserve.metadata import Metadata
from visionserve.models import FullyConvolutional

logger = logging.getLogger(__name__)


class PyTorchRuntime:
    """An eager module in channels-last layout.

    Args:
        artifact: a state dict of the network, loaded with `weights_only=True`.
        metadata: names the architecture, its transforms and classes.
        gpu_id: CUDA device index; None, or a machine without CUDA, means the CPU.
        half: run under FP16 autocast; on CUDA only.
        threads: intra-op threads on the CPU.
    """

    # Half a batch of TorchServe's: the device computes it while the other half is decoded.
    capacity = 16

    def __init__(
        self, artifact: Path, metadata: Metadata, gpu_id: int | None, half: bool, threads: int
    ) -> None:
        on_gpu = gpu_id is not None and torch.cuda.is_available()
        self._device = torch.device(f"cuda:{gpu_id}" if on_gpu else "cpu")
        self._half = half and on_gpu
        if half and not on_gpu:
            logger.warning("No CUDA device: the model runs in FP32 on the CPU.")
        torch.set_num_threads(threads)
        module = FullyConvolutional(
            metadata.architecture, len(metadata.categories), metadata.transforms
        ).eval()
        module.network.load_state_dict(torch.load(artifact, weights_only=True, map_location="cpu"))
        self._module = module.to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        batch = torch.tensor(pixels, device=self._device)
        with torch.autocast(self._device.type, torch.float16, enabled=self._half):
            probabilities: NDArray[np.float32] = self._module(batch).cpu().numpy()
        return probabilities

    @torch.inference_mode()
    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map a batch; see `visionserve.runtimes.Runtime`."""
        batch = torch.tensor(pixels, device=self._device)
        with torch.autocast(self._device.type, torch.float16, enabled=self._half):
            maps: NDArray[np.float32] = self._module.contributions(batch).cpu().numpy()
        return maps
