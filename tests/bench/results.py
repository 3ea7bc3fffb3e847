"""The figures of all rounds, their medians and ratios, and the bars that they should reach."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.bench.contenders import (
    BF16,
    CACHED,
    CLIENTS,
    DECODED,
    DROPPED_IN,
    EAGER,
    FP32,
    GROUPED,
    INT8,
    MIXED,
    MODEL,
    OURS,
    STOCK,
)
from visionserve.processor import CPUINFO

# With AMX, by what was measured there; with AVX-512 BF16, ResNet-18 alone is 1.9 times as fast.
BF16_BOUND = 2.5 if " amx_bf16 " in CPUINFO.read_text() else 1.5


@dataclass(frozen=True)
class Figure:
    """The description of one figure.

    Attributes:
        name: a contender, or a way to run the model without a server.
        metric: the name of the measured quantity, with its unit at the end.
        tta: the TTA mode of the requests.
        clients: the number of clients; 0 if there are none.
    """

    name: str
    metric: str
    tta: str = "none"
    clients: int = 0


@dataclass
class Results:
    """The values of each figure, one for each round."""

    values: dict[Figure, list[float]] = field(default_factory=dict)

    def add(self, figure: Figure, value: float) -> None:
        """Append a round's value."""
        self.values.setdefault(figure, []).append(value)

    def median(self, figure: Figure) -> float:
        """Return the median of all rounds."""
        return statistics.median(self.values[figure])

    def spread(self, figure: Figure) -> float:
        """Return the largest value divided by the smallest, minus 1."""
        return max(self.values[figure]) / min(self.values[figure]) - 1

    def ratio(self, over: Figure, under: Figure) -> float:
        """Return the median ratio; each is taken within a round, in which the machine is steady."""
        pairs = zip(self.values[over], self.values[under], strict=True)
        return statistics.median(a / b for a, b in pairs)


@dataclass(frozen=True)
class About:
    """The machine, packages, images and settings of a run.

    Attributes:
        processor: the processor's name.
        workers: the number of workers of each server, one for each core.
        packages: the version of each package by its name.
        weights: where the weights came from, as text for people.
        images: the number of images.
        image_kb: the mean size of an image, in kilobytes.
        rounds: the number of rounds.
        seconds: how long each load lasted.
        size_mb: sizes of the archives and of the bare models' files, in megabytes.
    """

    processor: str
    workers: int
    packages: dict[str, str]
    weights: str
    images: int
    image_kb: float
    rounds: int
    seconds: int
    size_mb: dict[str, float]


@dataclass(frozen=True)
class Bar:
    """A bound that a figure should reach.

    Attributes:
        claim: the claim in words.
        value: the figure's value.
        bound: the value that it should reach.
        unit: the unit of both values.
        at_least: whether the value should be at least the bound; otherwise at most.
    """

    claim: str
    value: float
    bound: float
    unit: str = "x"
    at_least: bool = True

    @property
    def reached(self) -> bool:
        """Whether the value reaches the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def rate(name: str, clients: int = 0, tta: str = "none") -> Figure:
    """Return the figure for a contender's rate."""
    return Figure(name, "requests/s", tta, clients)


def repeated(name: str) -> Figure:
    """Return the figure for a load that is repeated unchanged, to show how much results vary."""
    return Figure(name, "repeated requests/s")


def bars(results: Results, archive_mb: float) -> list[Bar]:
    """Compare the INT8 archive's figures with the bars.

    A ratio of rates is the lowest of the ratios for each number of clients above one.

    Args:
        results: the results of a whole run.
        archive_mb: size of the INT8 archive, in megabytes.
    """
    ours = OURS[INT8].name
    several = [clients for clients in CLIENTS if clients > 1]

    def lowest(pairs: Iterable[tuple[Figure, Figure]]) -> float:
        return min(results.ratio(*pair) for pair in pairs)

    def against(name: str) -> float:
        return lowest((rate(ours, clients), rate(name, clients)) for clients in several)

    def to_bare(name: str) -> float:
        return lowest((rate(ours, clients), rate(name)) for clients in several)

    def at_most(claim: str, name: str, metric: str, bound: float, clients: int = 0) -> Bar:
        value = results.median(Figure(name, metric, clients=clients))
        return Bar(claim, value, bound, metric.rpartition(" ")[2], at_least=False)

    dense = lowest((rate(ours, clients, "dense"), rate(ours, clients)) for clients in several)
    explained = (Figure(name, "explained p50 ms", clients=1) for name in (STOCK.name, ours))
    pairs = (
        [(rate(OURS[BF16].name, n, "dense"), rate(OURS[FP32].name, n, "dense")) for n in several]
        if BF16 in OURS
        else []
    )
    sizes = (Figure(name, "one image ms") for name in (MIXED, GROUPED))
    single = (Figure(name, "one image ms") for name in ("eager fp32", "openvino int8"))
    return [
        Bar(f"rate, part of the {MODEL}", to_bare(MODEL), 0.8),
        Bar(f"rate, part of the {DECODED}", to_bare(DECODED), 0.8),
        *(
            Bar(f"rate, to {peer.name}", against(peer.name), peer.bound)
            for peer in (*EAGER, *DROPPED_IN)
            if peer.bound
        ),
        *_pinned(results),
        Bar("rate with dense TTA, to the rate without TTA", dense, 0.5),
        *(
            Bar("rate in BF16 with dense TTA, to FP32's", lowest(pairs), BF16_BOUND)
            for _ in pairs[:1]
        ),
        Bar(
            "dense views of mixed sizes, to one size after the other",
            *(results.ratio(*sizes), 1.15),
            at_least=False,
        ),
        at_most("a cache hit's median time", CACHED.name, "p50 ms", 4.0, clients=1),
        at_most("from start to first answer", ours, "start s", 5.0),
        at_most("frontend and one worker", ours, "one worker MB", 600.0),
        at_most("each further worker", ours, "further worker MB", 250.0),
        Bar("archive", archive_mb, 12.0, "MB", at_least=False),
        Bar("one image on one thread, to eager fp32", results.ratio(*single), 2.5),
        Bar("an explained answer, to Integrated Gradients", results.ratio(*explained), 10.0),
    ]


def _pinned(results: Results) -> list[Bar]:
    """Return the bars of a worker that has a core to itself; none on a machine of one core."""
    ours, metric = Figure(OURS[INT8].name, "pinned requests/s"), "pinned server ms"
    if ours not in results.values:
        return []
    bare = Figure(DECODED, "pinned requests/s")
    # Processor time, which other work on the machine affects little.
    pairs = (Figure(ours.name, metric), Figure(DECODED, "pinned others ms"))
    beside = [a - b for a, b in zip(*(results.values[one] for one in pairs), strict=True)]
    hit = results.median(Figure(CACHED.name, metric))
    return [
        Bar(
            "pinned, rate, part of decode, preprocess, int8 model", results.ratio(ours, bare), 0.95
        ),
        Bar(
            "pinned, frontend and worker beside that",
            *(statistics.median(beside), 1.2, "ms"),
            at_least=False,
        ),
        Bar("pinned, frontend and worker for a cache hit", hit, 1.0, "ms", at_least=False),
    ]
