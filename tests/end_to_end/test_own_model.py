"""Networks that were trained in other ways, against their owner's own PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import models as tv
from torchvision import transforms as T  # noqa: N812

from scripts import photos
from scripts.archive.convert import convert
from scripts.archive.declared import Declared, resolve_preprocessing
from scripts.archive.serving import answers
from scripts.archive.weights import Weights
from tests.helpers import write_config
from visionserve.classifier import Classifier
from visionserve.config import ModelConfig
from visionserve.metadata import FILE

LABELS = ("dog", "cat", "bird", "sea life", "insect", "food", "vehicle", "home & music", "other")
TRAINED = Path(__file__).parents[3] / "shared/own-model/resnet18_nine_classes_fp16.pt"
PICTURES = [path for path in photos.packaged() if path.suffix == ".jpg"] + [photos.greeting()]
IMAGENET = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
BILINEAR, BICUBIC = T.InterpolationMode.BILINEAR, T.InterpolationMode.BICUBIC


def network(channels: int = 3) -> nn.Module:
    """The owner's network: a trained ResNet-18, or a drawn one whose features differ by picture."""
    torch.manual_seed(0)
    net = tv.resnet18(num_classes=len(LABELS))
    if TRAINED.exists():
        net.load_state_dict(torch.load(TRAINED, weights_only=True))
    else:
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        with torch.inference_mode():
            net.train()(
                torch.stack([steps()(Image.open(path).convert("RGB")) for path in PICTURES])
            )
        nn.init.normal_(net.fc.weight)
    if channels == 1:
        kernel = net.conv1.weight.sum(1, keepdim=True).detach()
        net.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        net.conv1.weight = nn.Parameter(kernel)
    return net.float().eval()


def steps(*others: Callable[[Any], Any], size: Any = 256, end: Any = IMAGENET) -> T.Compose:
    """The usual transforms, with others before or in place of them."""
    return T.Compose([*others, T.Resize(size), T.CenterCrop(224), T.ToTensor(), end])


class BlueFirst:
    """What cv2.imread gives, and then the usual mean and std in their usual order."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return IMAGENET(torch.from_numpy(np.ascontiguousarray(tensor.numpy()[::-1])))


def levels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)


CAFFE = T.Compose([T.Resize(256), T.CenterCrop(224), levels, T.Lambda(lambda t: t.flip(0) - MEAN)])
MEAN = torch.tensor([103.939, 116.779, 123.68])[:, None, None]
SQUASHED = T.Compose([T.Resize((224, 224)), T.ToTensor(), IMAGENET])
SMOOTH = T.Compose([T.Resize(232, BICUBIC), T.CenterCrop(192), T.ToTensor(), IMAGENET])
HALF = T.Normalize(0.5, 0.5)

OWNERS: dict[str, tuple[Callable[[Image.Image], Tensor], dict[str, Any]]] = {
    "imagenet": (steps(), {}),
    "half": (steps(end=HALF), {"mean": (0.5,), "std": (0.5,)}),
    "0 to 1": (steps(end=T.Lambda(lambda t: t)), {"mean": (0.0,), "std": (1.0,)}),
    "grey": (steps(T.Grayscale(3)), {"channels": "grey"}),
    "BGR": (steps(end=BlueFirst()), {"channels": "bgr"}),
    "squashed": (SQUASHED, {"resize": (224, 224)}),
    "one grey channel": (
        steps(T.Grayscale(), end=HALF),
        {"channels": "grey", "mean": (0.5,), "std": (0.5,)},
    ),
    "Caffe": (
        CAFFE,
        {
            **{"channels": "bgr", "range": "0-255", "mean": (103.939, 116.779, 123.68)},
            **{"std": (1.0,)},
        },
    ),
    "bicubic": (SMOOTH, {"resize": 232, "crop": 192, "interpolation": "bicubic"}),
}
ALSO_IN_PYTORCH = {"one grey channel", "Caffe"}


def own(name: str, weights: Path) -> tuple[nn.Module, Callable[[Image.Image], Tensor], Declared]:
    """Save an owner's network, and return it with their transforms and what they declare."""
    transform, declared = OWNERS[name]
    net = network(1 if name == "one grey channel" else 3)
    if name == "Caffe":
        net.conv1.weight.data /= 57
    torch.save(net.state_dict(), weights)
    return net, transform, Declared(**declared)


@torch.inference_mode()
def predict(net: nn.Module, transform: Callable[[Image.Image], Tensor]) -> NDArray[np.float32]:
    """What the owner's script says of the pictures."""
    images = [transform(Image.open(path).convert("RGB")) for path in PICTURES]
    found: NDArray[np.float32] = net(torch.stack(images)).softmax(1).numpy()
    return found


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("labels") / "labels.txt"
    file.write_text("\n".join(LABELS))
    return file


def served(folder: Path, weights: Path, declared: Declared, **handler: object) -> Classifier:
    """Convert weights to an archive's files, and load these as a worker does."""
    config = ModelConfig.load(write_config(folder, **handler))
    transforms = resolve_preprocessing(declared, "resnet18").transforms
    source = Weights(weights, weights.name, "")
    metadata = convert(
        "resnet18", source, LABELS, config.handler, PICTURES, folder, transforms=transforms
    )
    (folder / FILE).write_text(metadata.model_dump_json())
    return Classifier.from_archive(folder, config, None, "1.0")


@pytest.mark.parametrize("name", OWNERS)
def test_a_model_answers_as_its_owners_pytorch_does(name: str, tmp_path: Path) -> None:
    """From the bytes of a picture to the probability of every class."""
    net, transform, declared = own(name, tmp_path / "own.pt")
    expected = predict(net, transform)
    assert np.ptp(expected, axis=0).max() > 0.3, "the pictures must differ"
    for runtime in ("openvino", "pytorch") if name in ALSO_IN_PYTORCH else ("openvino",):
        classifier = served(tmp_path, tmp_path / "own.pt", declared, runtime=runtime)
        assert np.abs(answers(classifier, PICTURES) - expected).max() < 1e-5, runtime
