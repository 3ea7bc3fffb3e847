"""Import torchvision without PyTorch's compiler, which nothing here uses."""

import sys
from types import ModuleType
from typing import Any

import torch

# Two places of torchvision 0.29.1 import the compiler, which takes 80 MB in each worker, and as
# long as PyTorch itself: `ops/roi_align.py`, which any part of torchvision imports, asks it whether
# it can compile for a device; and `tv_tensors`, which `transforms.v2` imports, has it leave a
# function alone. Where one asks for the compiler later, it is imported itself.
ASKED = "torch._dynamo.utils"


def _as_it_is(function: Any) -> Any:
    return function


if "torchvision" not in sys.modules and ASKED not in sys.modules:
    stand_in = ModuleType(ASKED)
    stand_in.__dict__["is_compile_supported"] = lambda device: False
    sys.modules[ASKED] = stand_in
    compiler: Any = torch.compiler
    disable, compiler.disable = compiler.disable, _as_it_is
    try:
        import torchvision.tv_tensors  # noqa: F401
    finally:
        compiler.disable = disable
        del sys.modules[ASKED]
