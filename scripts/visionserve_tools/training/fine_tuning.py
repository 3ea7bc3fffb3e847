"""Train all layers of a network, by torchvision's reference recipe.

SGD with momentum, weight decay on weights alone, a cosine schedule after a linear warm-up, label
smoothing, random resized crops and TrivialAugment, or AugMix for robustness. Mixup is left out, as
it needs many photographs.
Source: https://github.com/pytorch/vision/tree/main/references/classification
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from visionserve.workarounds import torchvision_compiler  # noqa: F401

# isort: split

from torchvision.transforms import InterpolationMode, v2
from tqdm import tqdm

from visionserve import tta
from visionserve.metadata import Transforms
from visionserve.models import FullyConvolutional
from visionserve.preprocessing import resize
from visionserve_tools import photos
from visionserve_tools.training.interrupts import held_back

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
LABEL_SMOOTHING = 0.1
# The part of all steps in which the rate rises, from this part of it.
WARM_UP = 0.1
COLDEST = 0.01
# Epochs without a lower loss on the photographs that stop the training, after which it stops.
PATIENCE = 6

Photographs = Sequence[tuple[Path, int]]


class RunError(ValueError):
    """The checkpoint is of another training, or the training came to nothing."""


@dataclass(frozen=True)
class Plan:
    """What a training depends on besides its photographs and first weights.

    Attributes:
        epochs: at most.
        batch: photographs in a step.
        rate: the highest learning rate.
        seed: of the order and of all augmentation.
        augment: whether AugMix takes TrivialAugment's place.
    """

    epochs: int
    batch: int
    rate: float
    seed: int
    augment: bool


class Pictures(Dataset[tuple[Tensor, int]]):
    """Photographs as uint8 tensors of shape (crop, crop, 3), decoded as the server does.

    Args:
        photographs: with their class indices.
        transforms: the preprocessing.
        plan: gives the augmentation; without it, a photograph is its centre crop.
    """

    def __init__(
        self, photographs: Photographs, transforms: Transforms, plan: Plan | None = None
    ) -> None:
        self._photographs = photographs
        self._transforms = transforms
        filter_ = InterpolationMode(transforms.interpolation)
        self._augment = plan and v2.Compose(
            [
                v2.RandomResizedCrop(transforms.crop, interpolation=filter_),
                v2.RandomHorizontalFlip(),
                v2.AugMix() if plan.augment else v2.TrivialAugmentWide(),
                v2.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        """Return the number of photographs."""
        return len(self._photographs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read a photograph, and augment it if there is a plan."""
        path, label = self._photographs[index]
        image = photos.in_channels(photos.read(path), self._transforms.channels)
        if self._augment:
            return self._augment(image).permute(1, 2, 0), label
        pixels = resize(image, self._transforms)
        return torch.tensor(tta.views(pixels, "none", self._transforms.crop)[0]), label


def train(
    architecture: str,
    network: nn.Module,
    classes: int,
    photographs: Photographs,
    judges: Photographs,
    plan: Plan,
    transforms: Transforms,
    checkpoint: Path,
    run: str,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train until the loss on the judges stops falling, or the epochs are over.

    After each epoch everything is written to the checkpoint, from which the next call goes on to
    the same weights, on the same machine.

    Args:
        architecture: a key of `MODELS`.
        network: of that architecture, with its first weights.
        classes: how many it tells apart.
        photographs: to train on, with their class indices.
        judges: photographs that choose the best epoch.
        plan: the rest.
        transforms: the preprocessing.
        checkpoint: a file, which need not exist yet.
        run: names the training, so that no other one goes on from the checkpoint.

    Returns:
        The state dict of the epoch with the lowest loss, on the CPU, and each epoch's loss.

    Raises:
        RunError: the checkpoint is of another training, or broken; or the loss never was a number.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = FullyConvolutional(architecture, classes, transforms)
    module.network.load_state_dict(network.state_dict())
    module.to(device)
    batch = min(plan.batch, len(photographs))
    loader = _loader(Pictures(photographs, transforms, plan), batch, shuffle=True)
    judged = _loader(Pictures(judges, transforms), batch)
    optimizer = torch.optim.SGD(_parameters(module.network), plan.rate, MOMENTUM)
    total = plan.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total))
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    parts: dict[str, Any] = {"network": module.network, "optimizer": optimizer}
    parts |= {"schedule": schedule, "scaler": scaler}
    state = _resume(checkpoint, run, device) or {"run": run, "epoch": 0, "loss": math.inf}
    if state["epoch"]:
        print(f"Going on after epoch {state['epoch']} of {plan.epochs}.", file=sys.stderr)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    with tqdm(total=total, desc="training", initial=state["epoch"] * len(loader)) as bar:
        for epoch in range(state["epoch"] + 1, plan.epochs + 1):
            if epoch - state.get("best", epoch) > PATIENCE:
                break
            torch.manual_seed(plan.seed + epoch)
            _epoch(module, loader, optimizer, schedule, scaler, bar)
            loss, top1 = _judge(module, judged)
            bar.set_postfix_str(f"epoch {epoch}, {top1:.0%} of {len(judges)} judges right")
            state |= {"epoch": epoch} | {name: part.state_dict() for name, part in parts.items()}
            state["losses"] = [*state.get("losses", ()), loss]
            if loss < state["loss"]:
                best = {
                    name: tensor.cpu().clone()
                    for name, tensor in module.network.state_dict().items()
                }
                state |= {"loss": loss, "best": epoch, "weights": best}
            _save(state, checkpoint)
    if "weights" not in state:
        raise RunError("The loss is no number; give a lower --learning-rate and --overwrite.")
    best_state = module.network.cpu().state_dict()
    # In place, as MNASNet's dictionary has versions beside its tensors.
    best_state.update({name: tensor.cpu() for name, tensor in state["weights"].items()})
    return best_state, state["losses"]


def _loader(pictures: Pictures, batch: int, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(
        pictures,
        batch,
        shuffle=shuffle,
        # A last batch of one photograph would have no statistics for BatchNorm.
        drop_last=shuffle,
        num_workers=len(os.sched_getaffinity(0)),
        pin_memory=torch.cuda.is_available(),
    )


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    with held_back():
        batches = iter(loader)
    yield from batches


def _parameters(network: nn.Module) -> list[dict[str, Any]]:
    """Spare what has one dimension, norms and biases, from weight decay."""
    parameters = list(network.parameters())
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]


def _rate(step: int, total: int) -> float:
    """Return the part of the highest learning rate that a step has."""
    warm = max(1, round(total * WARM_UP))
    if step < warm:
        return COLDEST + (1 - COLDEST) * step / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, total - warm))


def _epoch(
    module: FullyConvolutional,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
    bar: Any,
) -> None:
    """Train on each photograph once, with FP16 activations on CUDA."""
    device = module.mean.device
    module.network.train()
    for pixels, labels in _batches(loader):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=scaler.is_enabled()):
            output = module.network(module.normalize(pixels.to(device, non_blocking=True)))
            # GoogLeNet and Inception also return their auxiliary classifiers, while they train.
            logits = output if isinstance(output, Tensor) else output[0]
            loss = functional.cross_entropy(
                logits, labels.to(device), label_smoothing=LABEL_SMOOTHING
            )
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        bar.update()


def _judge(module: FullyConvolutional, loader: DataLoader[Any]) -> tuple[float, float]:
    """Return the mean loss and the share of right answers."""
    module.network.eval()
    found, wanted = [], []
    with torch.inference_mode():
        for pixels, labels in _batches(loader):
            images = module.normalize(pixels.to(module.mean.device))
            found.append(module.network(images).float().cpu())
            wanted.append(labels)
    logits, labels = torch.cat(found), torch.cat(wanted)
    right = (logits.argmax(1) == labels).float().mean()
    return float(functional.cross_entropy(logits, labels)), float(right)


def _save(state: dict[str, Any], checkpoint: Path) -> None:
    """Write the checkpoint in one step, so that an interruption leaves the last one."""
    written = checkpoint.with_suffix(".part")
    torch.save(state, written)
    written.replace(checkpoint)


def _resume(checkpoint: Path, run: str, device: torch.device) -> dict[str, Any] | None:
    if not checkpoint.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=device)
    except Exception:
        raise RunError(f"{checkpoint}: is broken; --overwrite begins anew.") from None
    if state.get("run") != run:
        raise RunError(
            f"{checkpoint}: is of a training on other photographs or with other options; give "
            "them again, or --overwrite to begin anew."
        )
    return state
