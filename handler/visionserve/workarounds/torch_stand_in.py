"""A stand-in for PyTorch in the workers of an archive that runs on OpenVINO.

TorchServe's worker imports torch for a single check, `isinstance(response, torch.Tensor)` in
`ts.protocol.otf_message_handler`. The import takes a second and 300 MB in each worker. The
builder copies this file to `torch.py` in the root of OpenVINO archives. A worker searches its
archive before the installed packages, and so imports this file instead.
"""


class Tensor:
    """A class without instances: no response of the handler is a tensor."""
