"""Fit a state dict to a network: bring its names to the network's, and find what does not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# What wrappers of modules put amid names: torch.compile, FSDP and activation checkpointing.
WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The ResNet of Hugging Face's transformers has torchvision's layers by other names.
# Source: transformers/models/resnet/modeling_resnet.py
HUGGING_FACE = re.compile(
    r"(?:\bresnet\.)?\b(?:embedder\.embedder"
    r"|encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\.(?:shortcut|layer\.(?P<layer>\d+)))"
    r"\.(?P<kind>convolution|normalization)\."
)
# The official DenseNet files name layers as PyTorch 0.4 did; torchvision renames them too.
LEGACY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
# What inference does not use: counters of batch normalization, and the heads beside the main one
# of GoogLeNet and Inception.
UNUSED = re.compile(r".*\.num_batches_tracked|(?:aux[12]|AuxLogits)\..*")
# What a training program's module holds beside its network.
TRAINING = re.compile(
    r"n_averaged|(?:\w+_)?(?:criterion|loss(?:_fn|_fct)?|metrics?|acc|accuracy)(?:_\w+)?\..*"
    r"|(?:train|val|valid|test)_\w+\..*"
)
AVERAGE = re.compile(r"(?:^|[._])ema(?:[._]|$)")
HEADS = {"fc", "_fc", "classifier", "head", "heads", "last_linear"}
# From this share of a network's names on, tensors under one prefix are a copy of it.
COPY = 0.9
SHOWN = 3


@dataclass(frozen=True)
class Fitted:
    """One reading of a file's tensors: those under one prefix, by the network's names.

    Attributes:
        place: the keys and the prefix that the names have in the file, for people.
        own: the tensors under the prefix.
        beside: the names of all others, except copies of the network.
        expected: the network's own state dict, for its names, shapes and types.
    """

    place: str
    own: dict[str, Tensor]
    beside: tuple[str, ...]
    expected: Mapping[str, Tensor]

    @property
    def is_average(self) -> bool:
        """Whether these are averaged weights (EMA), by the names around them."""
        return bool(AVERAGE.search(self.place))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The network's tensors; those that inference does not use may be the network's own."""
        return {name: self._tensor(name) for name in self.expected if self._has(name)}

    @property
    def missing(self) -> list[str]:
        """Names that only the network has."""
        return [name for name in self.expected if not self._has(name)]

    @property
    def strange(self) -> list[str]:
        """Names that only the file has, and that change what its network computes."""
        return [name for name in self._left if not TRAINING.fullmatch(name)]

    @property
    def ignored(self) -> list[str]:
        """Names that only the file has, and that only its training needs."""
        return [name for name in self._left if TRAINING.fullmatch(name)]

    @property
    def differing(self) -> list[str]:
        """Names of tensors whose shape is not the network's, or that are no floats."""
        return [n for n, of in self.tensors.items() if form(of) != form(self.expected[n])]

    @property
    def fits(self) -> bool:
        """Whether the network can be given these tensors."""
        return not (self.missing or self.strange or self.differing)

    @property
    def fits_but_for_classes(self) -> bool:
        """Whether all that does not fit is another number of classes."""
        last = f"{last_layer(self.expected)}."
        return not (self.missing or self.strange) and all(
            name.startswith(last)
            and of.shape[:1] != self.expected[name].shape[:1]
            and of.shape[1:] == self.expected[name].shape[1:]
            for name, of in self.tensors.items()
            if name in self.differing
        )

    @property
    def classes(self) -> int | None:
        """The number of classes of the last layer; None where the file lacks that layer."""
        weight = self.own.get(f"{last_layer(self.expected)}.weight")
        return len(weight) if weight is not None and weight.dim() else None

    @property
    def _left(self) -> list[str]:
        left = [*self.beside, *(name for name in self.own if name not in self.expected)]
        return [name for name in left if not UNUSED.fullmatch(name)]

    def _has(self, name: str) -> bool:
        return name in self.own or bool(UNUSED.fullmatch(name))

    def _tensor(self, name: str) -> Tensor:
        own, wanted = self.own.get(name), self.expected[name]
        is_lent = own is None or (UNUSED.fullmatch(name) and own.shape != wanted.shape)
        return wanted if own is None or is_lent else own


def fit(found: Mapping[str, dict[str, Tensor]], expected: Mapping[str, Tensor]) -> list[Fitted]:
    """Return the readings of a file that come nearest to a network.

    A reading is one state dict of the file, less a prefix. There is one of averaged weights and one
    of others, or all that have each of the network's names, where there are several of a kind.

    Args:
        found: the file's state dicts, as `archive.checkpoint.read` returns them.
        expected: the network's state dict, for its names, shapes and types.
    """
    readings = []
    for place, state in found.items():
        named = {_renamed(name): tensor for name, tensor in state.items()}
        counts = _prefixes(named, expected) or Counter({"": 0})
        copies = tuple(p for p, count in counts.items() if count >= COPY * _needed(expected))
        for prefix in counts:
            where = ".".join(part for part in (place, prefix.rstrip(".")) if part)
            own, beside = _split(named, prefix, copies, expected)
            readings.append(Fitted(where, _with_head(own, expected), beside, expected))
    kinds = ([one for one in readings if one.is_average == kind] for kind in (False, True))
    return [reading for kind in kinds for reading in _nearest(kind)]


def last_layer(expected: Mapping[str, Tensor]) -> str:
    """Return the name of a network's last linear or convolutional layer."""
    layers = [n for n, of in expected.items() if n.endswith(".weight") and of.dim() > 1]
    return layers[-1].removesuffix(".weight")


def form(tensor: Tensor) -> str:
    """Return a tensor's shape, with its type unless that is floating-point."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    is_plain = tensor.is_floating_point() or tensor.dim() == 0
    return shape if is_plain else f"{shape} {tensor.dtype}".replace("torch.", "")


def listed(names: Sequence[str], joint: str = ", ") -> str:
    """Join the first names, and count the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return joint.join(names[:SHOWN]) + more


def _needed(expected: Mapping[str, Tensor]) -> int:
    return sum(not UNUSED.fullmatch(name) for name in expected)


def _nearest(readings: list[Fitted]) -> list[Fitted]:
    """Return the readings with all of the network's names, or else the one that lacks fewest."""
    complete = [reading for reading in readings if not reading.missing]
    return complete or sorted(readings, key=lambda reading: len(reading.missing))[:1]


def _renamed(name: str) -> str:
    """Undo what wrappers and other libraries do to torchvision's names."""
    return LEGACY.sub(r"\1\2", HUGGING_FACE.sub(_torchvision, WRAPPERS.sub("", name)))


def _torchvision(found: re.Match[str]) -> str:
    """Return torchvision's name for the beginning of one of Hugging Face's."""
    is_norm = found["kind"] == "normalization"
    layer = "bn" if is_norm else "conv"
    if found["stage"] is None:
        return f"{layer}1."
    block = f"layer{int(found['stage']) + 1}.{found['block']}."
    if found["layer"] is None:
        return f"{block}downsample.{int(is_norm)}."
    return f"{block}{layer}{int(found['layer']) + 1}."


def _prefixes(names: Iterable[str], expected: Mapping[str, Tensor]) -> Counter[str]:
    """Count how many of the network's names stand behind each prefix."""
    counts: Counter[str] = Counter()
    for name in names:
        if not UNUSED.fullmatch(name):
            starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
            counts.update(name[:start] for start in starts if name[start:] in expected)
    return counts


def _split(
    named: Mapping[str, Tensor],
    prefix: str,
    copies: tuple[str, ...],
    expected: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Divide tensors into those under a prefix, with its head, and others, less other copies."""
    others = tuple(copy for copy in copies if copy and copy != prefix)
    own: dict[str, Tensor] = {}
    beside = []
    for name, tensor in named.items():
        is_copy = name.startswith(others) or (AVERAGE.search(name) and not AVERAGE.search(prefix))
        is_copy = is_copy or (prefix != "" and "" in copies and name in expected)
        if name.startswith(prefix) and (prefix or not is_copy):
            own[name.removeprefix(prefix)] = tensor
        elif not is_copy:
            beside.append(name)
    parent = prefix.rpartition(".")[0].rpartition(".")[0]
    start = f"{parent}." if parent else ""
    # Lightning modules and MMPretrain have a head beside a backbone without one.
    if prefix and not any(name.partition(".")[0] in HEADS for name in own):
        heads = [name for name in beside if name.removeprefix(start).partition(".")[0] in HEADS]
        own |= {name.removeprefix(start): named[name] for name in heads}
        beside = [name for name in beside if name not in heads]
    return own, tuple(beside)


def _with_head(own: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the only layer of another head the name that the network has for it.

    Heads are called `fc`, `fc.1` behind a dropout, `classifier.1` or `head.fc`, which changes
    nothing. A head of several layers stays as it is, and so does not fit. A bias that a head lacks
    is 0.
    """
    last = last_layer(expected)
    weight, bias = f"{last}.weight", f"{last}.bias"
    roots = HEADS | {last.partition(".")[0]}
    layers = [
        name.removesuffix(".weight")
        for name in own
        if name.partition(".")[0] in roots and name.endswith(".weight") and name not in expected
    ]
    if weight not in own and len(layers) == 1:
        start = f"{layers[0]}."
        own = {
            f"{last}.{name.removeprefix(start)}" if name.startswith(start) else name: of
            for name, of in own.items()
        }
    if weight in own and bias in expected and bias not in own:
        own = own | {bias: own[weight].new_zeros(len(own[weight]))}
    return own
