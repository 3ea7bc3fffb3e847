"""The unit tests that import PyTorch, SciPy or scikit-learn, which takes seconds.

`make test-fast` runs them beside the others.
"""

# Torchvision without PyTorch's compiler, before a test imports it.
import visionserve.models  # noqa: F401
