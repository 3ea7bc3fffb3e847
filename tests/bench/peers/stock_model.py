"""ResNet-18 as a file with one class, as TorchServe's `image_classifier` handler requires."""

from torchvision.models.resnet import BasicBlock, ResNet


class ImageClassifier(ResNet):  # type: ignore[misc]
    """ResNet-18 with ImageNet's 1000 classes."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2])
