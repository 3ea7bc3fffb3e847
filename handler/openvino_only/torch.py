"""Stands in for PyTorch in the workers of an archive that runs on OpenVINO.

TorchServe's worker imports torch for one `isinstance(answer, torch.Tensor)`; the import takes
a second and 300 MB in each worker. An archive comes first in its workers' path, so that this
module, which the builder puts into the root of OpenVINO archives alone, is found instead.
"""


class Tensor:
    """What no answer is."""
