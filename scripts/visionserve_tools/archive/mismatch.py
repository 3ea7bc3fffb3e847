"""Say why a file of weights does not fit a network, and which network it does fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from visionserve.models import MODELS
from visionserve_tools.archive.fitting import Fitted, fit, form, last_layer, listed

if TYPE_CHECKING:
    from torch import Tensor

MOST_SUGGESTED = 3
# The methods by which modules fill their parameters, and functions of `torch.nn.init`, which give
# what they fill by the name of `tensor`.
DRAWN = {"normal_", "uniform_", "fill_", "zero_", "mul_", "add_", "erfinv_", "clamp_", "copy_"}
DRAWN |= {"constant_", "kaiming_uniform_"}


def explain(reading: Fitted, found: Mapping[str, dict[str, Tensor]], network: str) -> str:
    """Return lines that say what the file has, what the network wants, and the likely cause.

    Args:
        reading: the nearest reading of the file.
        found: all state dicts of the file.
        network: what to call the network that was asked for: its name, a key of `MODELS`.
    """
    expected = reading.expected
    last = f"{last_layer(expected)}.weight"
    lines = [
        f"does not fit {network}.",
        f"It has {_content(reading.own, reading.classes)}; "
        f"{network} has {_content(expected, len(expected[last]))}, one for each label.",
    ]
    shapes = [f"{n} {form(reading.own[n])}, not {form(expected[n])}" for n in reading.differing]
    for names, what in (
        (reading.missing, "It lacks {}."),
        (reading.strange, "The network lacks {}."),
        (shapes, "Of another form: {}."),
    ):
        lines += [what.format(listed(names, "; " if names is shapes else ", "))] if names else []
    return "\n".join([*lines, _cause(found, network)])


def _content(state: Mapping[str, Tensor], classes: int | None) -> str:
    convolutions, linear = (
        sum(of.dim() == rank for n, of in state.items() if n.endswith("weight")) for rank in (4, 2)
    )
    head = "no last layer" if classes is None else _counted(classes, "class")
    layers = f"{_counted(convolutions, 'convolution')}, {_counted(linear, 'linear layer')}"
    return f"{layers} and {head}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"


def _cause(found: Mapping[str, dict[str, Tensor]], network: str) -> str:
    suited = [
        name
        for name, expected in _networks().items()
        if name != network and any(reading.fits_but_for_classes for reading in fit(found, expected))
    ]
    if suited:
        return f"Did you mean visionserve build {' or '.join(suited[:MOST_SUGGESTED])}?"
    return "No other model that can be built has these tensors."


@cache
def _networks() -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of all models by name, without memory."""
    with NoMemory():
        return {name: model.build(1000).state_dict() for name, model in MODELS.items()}


class NoMemory(TorchFunctionMode):
    """Gives new modules parameters without memory, and draws no numbers for them.

    Unlike `torch.device("meta")`, it leaves alone what a network computes with as it is built.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make `torch.empty` return a tensor without memory, and leave it as it is."""
        if func is torch.empty:
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        filled = args[0] if args else (kwargs or {}).get("tensor")
        if isinstance(filled, torch.Tensor) and filled.is_meta and func.__name__ in DRAWN:
            return filled
        return func(*args, **kwargs or {})
