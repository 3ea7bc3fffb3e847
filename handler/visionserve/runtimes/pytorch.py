"""PyTorch on a CPU or a CUDA device."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionserve import tta
from visionserve.errors import RequestError
from visionserve.metadata import Metadata
from visionserve.models import FullyConvolutional
from visionserve.runtimes.base import Linear, Passed, Runtime
from visionserve.runtimes.transfer import Transfer

# Numbers of views for which a CUDA graph is recorded. A pass of another number uses the next
# larger graph, and ignores the rest of its output.
BUCKETS = (1, 2, 4, 8, 16, 32)

logger = logging.getLogger(__name__)


class PyTorchRuntime(Runtime):
    """A frozen module; see `FullyConvolutional.freeze`.

    The device does everything after the resize. It receives the pixels of all images in one copy,
    cuts and mirrors the views, normalizes and classifies them, and averages each image's
    probabilities and features. On CUDA, crops go through recorded graphs, so a pass is one launch
    instead of a hundred. `dense` views differ in size, and so have no graphs.

    Args:
        artifact: a state dict of the network, loaded with `weights_only=True`.
        metadata: names the architecture, its transforms and classes.
        gpu_id: CUDA device index; None, or a machine without CUDA, means the CPU.
        half: whether weights and activations are FP16, which takes CUDA.
        threads: intra-op threads on the CPU.

    Attributes:
        graphs: number of views to a recorded pass, and the tensors that receive its
            probabilities and features.
    """

    # Half a batch of the profile for a GPU: the device computes one half while the CPU decodes
    # the other.
    capacity = 16

    def __init__(
        self, artifact: Path, metadata: Metadata, gpu_id: int | None, half: bool, threads: int
    ) -> None:
        on_gpu = gpu_id is not None and torch.cuda.is_available()
        self._device = torch.device(f"cuda:{gpu_id}" if on_gpu else "cpu")
        self.precision = "fp16" if half and on_gpu else "fp32"
        torch.set_num_threads(threads)
        transforms = metadata.transforms
        module = FullyConvolutional(
            metadata.architecture,
            metadata.outputs,
            transforms,
            metadata.groups,
            metadata.activation,
        ).eval()
        module.network.load_state_dict(torch.load(artifact, weights_only=True, map_location="cpu"))
        module.freeze(torch.float16 if half and on_gpu else torch.float32)
        self._module = module.to(self._device)
        self._crop = (transforms.crop, transforms.crop)
        most = max(BUCKETS[-1] * transforms.crop**2, tta.LONGEST**2)
        self._transfer = Transfer(BUCKETS[-1], most, self._device)
        self.graphs = self._record() if on_gpu else {}

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        return self.passed(pixels).probabilities

    def passed(self, pixels: NDArray[np.uint8]) -> Passed:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        return self.averaged([tta.whole(view) for view in pixels])

    @torch.inference_mode()
    def averaged(self, images: Sequence[tta.Views]) -> Passed:
        """Classify images by their views; see `visionserve.runtimes.Runtime`."""
        try:
            return Passed.joined([self._pass(one) for one in self._transfer.batches(images)])
        except torch.cuda.OutOfMemoryError:
            logger.exception("The device has no memory left.")
        torch.cuda.empty_cache()
        raise RequestError(
            507, "internal_error", "The device has no memory left for the image: try again."
        )

    @torch.inference_mode()
    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Explain a batch; see `visionserve.runtimes.Runtime`."""
        batch = torch.tensor(pixels, device=self._device)
        maps: NDArray[np.float32] = self._module.contributions(batch).cpu().numpy()
        return maps

    def linear(self) -> Linear:
        """Return the last layer; see `visionserve.runtimes.Runtime`."""
        layer = self._module.linear
        assert layer is not None
        weight: NDArray[np.float32] = layer.weight.detach().float().T.cpu().contiguous().numpy()
        bias = np.zeros(weight.shape[1], np.float32)
        if layer.bias is not None:
            bias = layer.bias.detach().float().cpu().numpy()
        return Linear(weight, bias)

    def _pass(self, images: Sequence[tta.Views]) -> Passed:
        """Classify images that fit the buffer.

        The copy of the result waits for the device, so the buffer is free again on return.
        """
        views, shape = sum(len(image.places) for image in images), images[0].shape
        self._transfer.send(images)
        bucket = next((bucket for bucket in self.graphs if bucket >= views), None)
        if bucket is None or shape != self._crop:
            found = self._forward(views, shape)
        else:
            graph, found = self.graphs[bucket]
            graph.replay()
        averages = [
            self._transfer.average(rows[:views], len(images)).cpu().numpy()
            for rows in found
            if rows is not None
        ]
        return Passed(*averages)

    def _forward(self, views: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        return self._module.passed(self._module.normalize(self._transfer.cut(views, shape)))

    @torch.inference_mode()
    def _record(self) -> dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor | None]]]:
        """Record a pass for each bucket; return nothing if the device cannot."""
        graphs = {}
        try:
            with torch.cuda.device(self._device):
                memory = torch.cuda.graph_pool_handle()
                for views in BUCKETS:
                    # The first pass chooses kernels, which is not possible during a recording.
                    self._forward(views, self._crop)
                    torch.cuda.synchronize()
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, pool=memory):
                        found = self._forward(views, self._crop)
                    graphs[views] = graph, found
        except RuntimeError as error:
            logger.warning("No CUDA graphs, the model runs eagerly: %s", error)
            return {}
        return graphs
