"""The unit tests that import PyTorch, which `make test-fast` runs beside the others."""

# Torchvision without PyTorch's compiler, before a test imports it.
import visionserve.models  # noqa: F401
