"""Import torchvision without PyTorch's compiler, which nothing here uses."""

import sys
from types import ModuleType

# `torchvision/ops/roi_align.py` (0.29.1), which any part of torchvision imports, takes one function
# from the compiler: whether it can compile for a device. Its import takes 80 MB in each worker, and
# as long as PyTorch's own. Where one asks for it later, the compiler itself is imported.
ASKED = "torch._dynamo.utils"

if "torchvision" not in sys.modules and ASKED not in sys.modules:
    stand_in = ModuleType(ASKED)
    stand_in.__dict__["is_compile_supported"] = lambda device: False
    sys.modules[ASKED] = stand_in
    try:
        import torchvision  # noqa: F401
    finally:
        del sys.modules[ASKED]
