"""How soon the real rules see a stream that changes, and how often one that does not.

The streams are drawn from what was measured of 500 photographs of ImageNet, of every second class,
brought to a shorter side of 384 pixels: as they are, with mild damages of
`quality.corruptions` (every second photograph), and of the 120 pictures that
`quality.generated` draws; by EfficientNet-Lite0 as the local profile serves it.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve_tools import paths

ALERTS = paths.CONFIG / "prometheus" / "alerts.yml"
A_DAY = 1000
DAY = 1440  # minutes
LEARNED = 10 * 60  # minutes in which the reference's requests come

Shares = dict[str, NDArray[np.float64]]
Counts = dict[tuple[str, int], NDArray[np.int64]]


def of(**counts: Sequence[int]) -> Shares:
    """Return the shares of the buckets, by property."""
    return {
        name.replace("classes", "class"): np.array(of_one) / sum(of_one)
        for name, of_one in counts.items()
    }


def mixed(one: Shares, other: Shares, part: float) -> Shares:
    """A stream of which a part is the other's."""
    return {name: (1 - part) * one[name] + part * other[name] for name in one}


# How many of the pictures each bucket has.
CLEAN = of(
    luminance=[49, 49, 52, 44, 51, 54, 48, 51, 48, 54],
    sharpness=[50, 50, 48, 53, 49, 50, 50, 49, 51, 50],
    classes=[24, 25, 24, 26, 24, 26, 25, 26, 24, 21, 24, 29, 27, 23, 23, 26, 27, 28, 22, 26],
    unfamiliar=[478, 22],
)
FOREIGN = of(
    luminance=[26, 5, 6, 3, 3, 2, 4, 4, 19, 48],
    sharpness=[103, 4, 2, 1, 1, 1, 0, 0, 1, 7],
    classes=[9, 1, 11, 0, 0, 0, 1, 0, 1, 7, 7, 0, 2, 12, 8, 6, 1, 4, 49, 1],
    unfamiliar=[2, 118],
)
ANIMALS = of(classes=[24, 25, 24, 26, 24, 26, 25, 24, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
# Each shift, and how many of its requests it may take.
SHIFTED: dict[str, tuple[int, Shares]] = {
    "noise": (
        50,
        of(
            luminance=[20, 21, 23, 13, 32, 29, 32, 28, 41, 11],
            sharpness=[0, 0, 0, 0, 0, 0, 0, 0, 0, 250],
        ),
    ),
    "blur": (
        50,
        of(
            luminance=[35, 28, 34, 19, 23, 29, 22, 18, 16, 26],
            sharpness=[221, 26, 3, 0, 0, 0, 0, 0, 0, 0],
        ),
    ),
    "contrast": (
        50,
        of(
            luminance=[160, 46, 20, 7, 7, 3, 3, 4, 0, 0],
            sharpness=[93, 45, 47, 19, 12, 9, 10, 7, 8, 0],
        ),
    ),
    "dark": (
        50,
        of(
            luminance=[250, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            sharpness=[62, 49, 45, 35, 12, 12, 6, 15, 13, 1],
        ),
    ),
    "jpeg": (
        100,
        of(
            luminance=[23, 20, 26, 20, 25, 26, 29, 27, 28, 26],
            sharpness=[147, 29, 15, 18, 6, 6, 6, 7, 11, 5],
        ),
    ),
    "animals": (100, ANIMALS),
    "more-animals": (400, mixed(ANIMALS, CLEAN, 0.5)),
    "foreign": (200, mixed(CLEAN, FOREIGN, 0.1)),
}


def drawn(random: np.random.Generator, share: Shares, steps: int, a_step: float) -> Counts:
    """Draw how many answers each bucket of a property has in each step."""
    return {
        (name, bucket): random.poisson(a_step * part, steps)
        for name, parts in share.items()
        for bucket, part in enumerate(parts)
    }


def series(name: str, rises: NDArray[np.int64]) -> dict[str, str]:
    """A counter, as promtool reads it."""
    return {"series": name, "values": " ".join(map(str, [0, *np.cumsum(rises)]))}


def pictures(model: str, counts: Counts) -> list[dict[str, str]]:
    """The counters of a model's pictures."""
    return [
        series(
            f'vision_pictures_total{{ModelName="{model}", Property="{name}", Bucket="{bucket}"}}',
            rises,
        )
        for (name, bucket), rises in counts.items()
    ]


def fired(models: Sequence[str], minutes: int, at: int, expected: Sequence[str]) -> dict[str, Any]:
    """Say which models have an alarm in the last minutes before a minute."""
    chosen = f'alertname="VisionserveDrift", alertstate="firing", ModelName=~"{"|".join(models)}"'
    return {
        "expr": f"group by (ModelName) (count_over_time(ALERTS{{{chosen}}}[{minutes}m]))",
        "eval_time": f"{at}m",
        "exp_samples": [{"labels": f'{{ModelName="{name}"}}', "value": 1} for name in expected],
    }


def promtool(
    folder: Path, step: int, streams: list[dict[str, str]], asked: list[dict[str, Any]]
) -> None:
    """Run the rules over counters, every so many minutes."""
    test = {"interval": f"{step}m", "input_series": streams, "promql_expr_test": asked}
    rules = {"rule_files": [str(ALERTS)], "evaluation_interval": f"{step}m", "tests": [test]}
    file = folder / "drift.test.yml"
    file.write_text(json.dumps(rules))
    command = ["promtool", "test", "rules", str(file)]
    collected = os.environ | {"GOGC": "400"}  # Go's garbage, seldom: that takes a fifth less time.
    done = subprocess.run(command, env=collected, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_each_shift_shows_within_so_many_requests_and_none_before(tmp_path: Path) -> None:
    """The reference's 5,000 requests come faster than the others, which saves promtool time."""
    random, step = np.random.default_rng(1), 20
    a_step = A_DAY * step / DAY
    shift = LEARNED + DAY
    streams, asked = [], [fired([*SHIFTED], shift, shift, [])]
    for model, (requests, shifted) in SHIFTED.items():
        clean = {name: CLEAN[name] for name in shifted}
        steps = int(requests / a_step)
        parts = (
            drawn(random, clean, LEARNED // step, 5000 * step / LEARNED),
            drawn(random, clean, DAY // step, a_step),
            drawn(random, shifted, steps, a_step),
        )
        streams += pictures(
            model, {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        )
        asked.append(fired([model], steps * step, shift + steps * step, [model]))
    promtool(tmp_path, step, streams, asked)


def test_a_stream_that_stays_has_no_alarm_in_a_month(tmp_path: Path) -> None:
    """A week's requests for the reference come in hours, as above."""
    random, step, days = np.random.default_rng(0), 60, 31
    parts = (
        drawn(random, CLEAN, LEARNED // step, 7 * A_DAY * step / LEARNED),
        drawn(random, CLEAN, days * DAY // step, A_DAY * step / DAY),
    )
    counts = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    asked = fired(["steady"], 30 * DAY, LEARNED + days * DAY, [])
    promtool(tmp_path, step, pictures("steady", counts), [asked])
