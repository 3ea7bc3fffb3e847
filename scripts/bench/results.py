"""Figures by round, their medians and ratios, and the bars that they are held against."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from scripts.bench.contenders import (
    CACHED,
    CLIENTS,
    DECODED,
    DROPPED_IN,
    EAGER,
    INT8,
    MODEL,
    OURS,
    STOCK,
)


@dataclass(frozen=True)
class Figure:
    """What one figure tells.

    Attributes:
        name: a contender, or a way to run the model without a server.
        metric: what is measured, its unit at the end.
        tta: the TTA mode of the requests.
        clients: their number; 0 where there are none.
    """

    name: str
    metric: str
    tta: str = "none"
    clients: int = 0


@dataclass
class Results:
    """Each figure's values, one a round."""

    values: dict[Figure, list[float]] = field(default_factory=dict)

    def add(self, figure: Figure, value: float) -> None:
        """Append a round's value."""
        self.values.setdefault(figure, []).append(value)

    def median(self, figure: Figure) -> float:
        """Return the median of all rounds."""
        return statistics.median(self.values[figure])

    def spread(self, figure: Figure) -> float:
        """Return the largest value over the smallest, less 1."""
        return max(self.values[figure]) / min(self.values[figure]) - 1

    def ratio(self, over: Figure, under: Figure) -> float:
        """Return the median of the rounds' ratios, so that both sides saw the same minutes."""
        pairs = zip(self.values[over], self.values[under], strict=True)
        return statistics.median(a / b for a, b in pairs)


@dataclass(frozen=True)
class About:
    """What a run measured on and with.

    Attributes:
        processor: its name.
        workers: of each server, one a core.
        packages: name to version.
        weights: where they came from, for people.
        images: their number.
        image_kb: their mean size, in kilobytes.
        rounds: their number.
        seconds: a load's time.
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
    """What a figure should reach.

    Attributes:
        claim: in words.
        value: the figure.
        bound: what it is compared with.
        unit: of both.
        at_least: whether the figure should be as large as the bound, or as small.
    """

    claim: str
    value: float
    bound: float
    unit: str = "x"
    at_least: bool = True

    @property
    def reached(self) -> bool:
        """Whether it is."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def rate(name: str, clients: int = 0, tta: str = "none") -> Figure:
    """Name a contender's rate."""
    return Figure(name, "requests/s", tta, clients)


def repeated(name: str) -> Figure:
    """Name a load that is the same each time, so that only chance and the machine differ."""
    return Figure(name, "repeated requests/s")


def bars(results: Results, archive_mb: float) -> list[Bar]:
    """Hold the INT8 archive against the bars.

    A ratio of rates is taken at each number of clients from two, and the lowest one counts.

    Args:
        results: a whole run's.
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
    single = (Figure(name, "one image ms") for name in ("eager fp32", "openvino int8"))
    return [
        Bar(f"rate, part of the {MODEL}", to_bare(MODEL), 0.8),
        Bar(f"rate, part of the {DECODED}", to_bare(DECODED), 0.8),
        *(
            Bar(f"rate, to {peer.name}", against(peer.name), 4.0 if peer is STOCK else 2.5)
            for peer in EAGER
        ),
        *(Bar(f"rate, to {peer.name}", against(peer.name), 1.0) for peer in DROPPED_IN),
        Bar("rate with dense TTA, to the rate without TTA", dense, 0.55),
        at_most("a cache hit's median time", CACHED.name, "p50 ms", 4.0, clients=1),
        at_most("from start to first answer", ours, "start s", 5.0),
        at_most("frontend and one worker", ours, "one worker MB", 600.0),
        at_most("each further worker", ours, "further worker MB", 250.0),
        Bar("archive", archive_mb, 12.0, "MB", at_least=False),
        Bar("one image on one thread, to eager fp32", results.ratio(*single), 2.5),
        Bar("an explained answer, to Integrated Gradients", results.ratio(*explained), 10.0),
    ]
