"""A network that begins with trained weights and ends in a new layer for other classes."""

import copy

import torch
from torch import Tensor, nn

from visionserve.metadata import Transforms
from visionserve.models import MODELS, FullyConvolutional
from visionserve_tools.archive.mismatch import NoMemory
from visionserve_tools.archive.weights import ClassCountError, Weights, load_state_dict


class HeadError(ValueError):
    """The network's last layer is not linear."""


def start(architecture: str, classes: int, weights: Weights, seed: int) -> nn.Module:
    """Build a network whose layers have trained weights, except those that depend on the classes.

    Args:
        architecture: a key of `MODELS`.
        classes: how many it shall tell apart.
        weights: of the same architecture, for any number of classes.
        seed: of the new layer's random weights.

    Raises:
        WeightsError: the weights do not fit the architecture.
    """
    torch.manual_seed(seed)
    network = MODELS[architecture].build(classes)
    state = network.state_dict()
    try:
        trained = load_state_dict(weights, state)
    except ClassCountError as error:
        trained = load_state_dict(weights, MODELS[architecture].build(error.classes).state_dict())
    new = heads(network, architecture, classes)
    # In place, as MNASNet's dictionary has versions beside its tensors.
    state.update({name: trained[name] for name in state if name not in new})
    network.load_state_dict(state)
    return network.eval()


def heads(network: nn.Module, architecture: str, classes: int) -> list[str]:
    """Return the names of the weights whose shapes depend on the number of classes, in order."""
    with NoMemory():
        other = MODELS[architecture].build(classes + 1).state_dict()
    return [name for name, own in network.state_dict().items() if own.shape != other[name].shape]


def last_linear(network: nn.Module, architecture: str, classes: int) -> tuple[str, nn.Linear]:
    """Return the name and the module of the network's last layer.

    Raises:
        HeadError: it is not linear.
    """
    name = heads(network, architecture, classes)[-1].rpartition(".")[0]
    layer = network.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise HeadError(
            f"{architecture} ends in no linear layer, which frozen features need; give --fine-tune."
        )
    return name, layer


class Backbone(FullyConvolutional):
    """A network without its last layer, from pixels to the features that the layer would get.

    Args:
        architecture: a key of `MODELS`.
        network: of that architecture; it is copied.
        linear: the name of its last layer.
        transforms: the preprocessing.
    """

    def __init__(
        self, architecture: str, network: nn.Module, linear: str, transforms: Transforms
    ) -> None:
        super().__init__(architecture, 1, transforms)
        self.network = copy.deepcopy(network).eval()
        self.network.set_submodule(linear, nn.Identity())
        self.dense = False

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features, float of shape (N, features), of pixels as `FullyConvolutional`'s."""
        features: Tensor = self.network(self.normalize(pixels))
        return features
