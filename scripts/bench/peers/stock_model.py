"""ResNet-18 as TorchServe's own `image_classifier` handler asks for it: a file with one class."""

from torchvision.models.resnet import BasicBlock, ResNet


class ImageClassifier(ResNet):  # type: ignore[misc]
    """ResNet-18 with ImageNet's 1000 classes."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2])
