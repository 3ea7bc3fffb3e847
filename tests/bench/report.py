"""Present a run's results as Markdown tables and a chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.contenders import ALL, CLIENTS, DECODED, INT8, MODEL, OURS, PILLOW, PINNED, TTA
from tests.bench.results import About, Bar, Figure, Results, rate, repeated
from visionserve_tools.report.tables import table

CHARTED = 2
CEILINGS = (rate(MODEL), rate(DECODED), rate(PILLOW))


def markdown(results: Results, about: About, held: Sequence[Bar]) -> str:
    """Return a heading and all tables."""
    size_mb = about.size_mb
    parts = [_heading(results, about), _rates(results), _starts(results, size_mb)]
    parts += [_pinned(results), _explained(results), _bare(results, size_mb), _bars(held)]
    return "\n\n".join(part for part in parts if part)


def _heading(results: Results, about: About) -> str:
    client = results.median(Figure(OURS[INT8].name, "client ms", clients=CHARTED))
    packages = ", ".join(f"{name} {version}" for name, version in about.packages.items())
    return (
        f"{about.processor}, {about.workers} cores; {packages}. ResNet-18, weights: "
        f"{about.weights}. {about.images} images of {about.image_kb:.0f} kB on average. "
        f"Median of {about.rounds} rounds of {about.seconds} s a load; {about.workers} workers of "
        f"one thread each. The client, wrk, runs on the same cores, where it takes {client:.2f} ms "
        f"for a request to {OURS[INT8].name}. The same load of it, repeated "
        f"{len(results.values[repeated(OURS[INT8].name)])} times, differed by up to "
        f"{results.spread(repeated(OURS[INT8].name)):.0%}: smaller differences say nothing."
    )


def _rates(results: Results) -> str:
    def cell(name: str, tta: str, clients: int) -> str:
        metrics = ("requests/s", "p50 ms", "p99 ms")
        figures = [Figure(name, metric, tta, clients) for metric in metrics]
        if figures[0] not in results.values:
            return ""
        per_second, p50, p99 = map(results.median, figures)
        return f"{per_second:.1f} ({p50:.1f} / {p99:.1f})"

    rows = [
        [contender.name, tta, *(cell(contender.name, tta, clients) for clients in CLIENTS)]
        for contender in ALL
        for tta in contender.tta
    ]
    counts = (f"{clients} client{'s' if clients > 1 else ''}" for clients in CLIENTS)
    return "Requests a second (p50 / p99 in ms)\n\n" + table(["server", "TTA", *counts], rows)


def _starts(results: Results, size_mb: Mapping[str, float]) -> str:
    rows = []
    for contender in ALL:
        processes = [
            results.median(figure)
            for figure in results.values
            if figure.name == contender.name and figure.metric.startswith("process ")
        ]
        size = size_mb.get(contender.model)
        rows.append(
            [
                contender.name,
                f"{results.median(Figure(contender.name, 'start s')):.1f} s",
                f"{sum(processes):.0f} MB",
                " + ".join(f"{pss:.0f}" for pss in processes),
                f"{size:.1f} MB" if size and not contender.command else "",
            ]
        )
    heading = [
        "server",
        "start to first answer",
        "PSS after the loads",
        "first process + each below",
        "archive",
    ]
    return table(heading, rows)


def _pinned(results: Results) -> str:
    """Return the table of servers whose one worker has a core to itself; see `bench.pinned`."""
    rows = []
    for name in (DECODED, *(contender.name for contender in PINNED)):
        metrics = ("requests/s", "first process ms", "others ms")
        figures = [Figure(name, f"pinned {metric}") for metric in metrics]
        found = [results.median(one) if one in results.values else None for one in figures]
        if found[0] is not None:
            rows.append([name, *("" if one is None else f"{one:.2f}" for one in found)])
    if not rows:
        return ""
    heading = ["one worker on its own core", "requests/s:"]
    return table([*heading, "ms of the first process:", "ms of the others:"], rows)


def _explained(results: Results) -> str:
    """Return the table of explained answers.

    The stock handler explains with captum's Integrated Gradients in 15 steps.
    """
    rows = []
    for contender in ALL:
        if contender.explains:
            metrics = ("explained p50 ms", "p50 ms")
            figures = [Figure(contender.name, metric, clients=1) for metric in metrics]
            rows.append([contender.name, *(f"{results.median(f):.1f} ms" for f in figures)])
    return table(["one client, p50", "explained answer", "plain answer"], rows)


def _bare(results: Results, size_mb: Mapping[str, float]) -> str:
    rows = []
    for figure in results.values:
        if figure.metric == "one image ms":
            rows.append(
                [f"{figure.name}, one image on one thread", f"{results.median(figure):.2f} ms"]
            )
        elif figure in CEILINGS:
            rows.append([figure.name, f"{results.median(figure):.1f} images/s"])
    for name in ("eager fp32", "eager, dynamic int8"):
        rows.append([f"{name}, file", f"{size_mb[name]:.1f} MB"])
    return table(["without a server", ""], rows)


def _bars(held: Sequence[Bar]) -> str:
    rows = [
        [
            bar.claim,
            f"{bar.value:.2f} {bar.unit}",
            f"{'at least' if bar.at_least else 'at most'} {bar.bound:g} {bar.unit}",
            "ok" if bar.reached else "not reached",
        ]
        for bar in held
    ]
    return table(["ours, openvino int8", "measured", "wanted", ""], rows)


def chart(results: Results, path: Path) -> None:
    """Draw the rates at `CHARTED` clients as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {ceiling.name: "tab:grey" for ceiling in CEILINGS}
    colours |= {contender.name: "tab:blue" for contender in OURS.values()}
    drawn = [rate(contender.name, CHARTED, tta) for contender in ALL for tta in TTA]
    drawn += CEILINGS
    medians = {figure: results.median(figure) for figure in drawn if figure in results.values}
    ordered = sorted(medians, key=medians.__getitem__)
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(ordered) + 1), layout="constrained")
    bars = axes.barh(
        [name.name if name.tta == "none" else f"{name.name}, {name.tta} TTA" for name in ordered],
        [medians[name] for name in ordered],
        color=[colours.get(name.name, "tab:orange") for name in ordered],
    )
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"requests per second, {CHARTED} clients")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
