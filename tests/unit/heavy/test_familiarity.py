"""The scores of features, against PyTorch and scikit-learn, and the thresholds that are fitted."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from visionserve.config import TTA
from visionserve.familiarity import Energy, Neighbours, Rounded
from visionserve.runtimes import Linear
from visionserve_tools.quality import generated, unfamiliar
from visionserve_tools.quality.unfamiliar import Pictures

RANDOM = np.random.default_rng(0)
LAST = Linear(
    RANDOM.normal(size=(64, 10)).astype(np.float32), RANDOM.normal(size=10).astype(np.float32)
)
FEATURES = RANDOM.gamma(1, size=(30, 64)).astype(np.float32)


def test_the_energy_is_that_of_clipped_and_pruned_features() -> None:
    """As the papers' own code does it: ReAct's `clip`, ASH-S's `topk`, `scatter` and `exp`."""
    given = torch.from_numpy(FEATURES)
    before = given.clip(max=1.5).sum(1)
    values, places = given.topk(16, dim=1)
    pruned = torch.zeros_like(given).scatter(1, places, values).clip(max=1.5)
    pruned *= torch.exp(before / pruned.sum(1))[:, None]
    logits = pruned @ torch.from_numpy(LAST.weight) + torch.from_numpy(LAST.bias)
    expected = logits.logsumexp(1).numpy()
    score = Energy(LAST, clip=1.5, kept=0.25)
    assert np.allclose([score(row) for row in FEATURES], expected, rtol=1e-5)
    assert Rounded.of(LAST) is LAST
    assert np.isfinite(Energy(LAST, clip=1e4, kept=1)(FEATURES[0] * 1e4))
    assert np.isfinite(score(np.zeros(64, np.float32)))


def test_a_layer_in_int8_scores_as_its_floats_do() -> None:
    """Its steps are PyTorch's, of one scale for each class."""
    scale = torch.from_numpy(np.abs(LAST.weight).max(axis=0) / 127)
    zeros = torch.zeros(10, dtype=torch.int32)
    given = torch.from_numpy(LAST.weight)
    floats = torch.fake_quantize_per_channel_affine(given, scale, zeros, 1, -127, 127).numpy()
    floats[:, 3] = 0
    last = Rounded.of(Linear(floats, LAST.bias))
    assert isinstance(last, Rounded) and last.weight.dtype == np.int8
    for row in FEATURES:
        expected = Energy(Linear(floats, LAST.bias), 1.5, 0.25)(row)
        assert Energy(last, 1.5, 0.25)(row) == pytest.approx(expected, rel=1e-5)


def test_a_neighbour_is_scikit_learns_third_nearest() -> None:
    """Of centred directions; a known photograph is not its own neighbour."""
    mean = FEATURES[:25].mean(axis=0)

    def directions(features: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(features - mean, axis=1, keepdims=True)
        return np.asarray((features - mean) / lengths)

    search = NearestNeighbors(n_neighbors=4, metric="cosine").fit(directions(FEATURES[:25]))
    known = Neighbours(FEATURES[:25])
    expected = 1 - search.kneighbors(directions(FEATURES[25:]), 3)[0][:, 2]
    assert np.allclose([known(row) for row in FEATURES[25:]], expected, atol=1e-5)
    among = 1 - search.kneighbors(directions(FEATURES[:25]))[0][:, 3]
    assert np.allclose(known.among(FEATURES[:25]), among, atol=1e-5)
    assert Neighbours(FEATURES[:2])(FEATURES[0]) <= 1


def sample(random: np.random.Generator, count: int, classes: np.ndarray) -> np.ndarray:
    chosen = classes[random.integers(len(classes), size=count)]
    return np.abs(chosen + random.normal(0, 0.3, chosen.shape)).astype(np.float32)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_better_method_is_taken_at_the_wanted_rate(rate: float) -> None:
    """Logits without a meaning leave the neighbours alone; a class in each channel, the energy."""
    random = np.random.default_rng(1)
    classes = random.gamma(1, size=(10, 64))
    known = {mode: sample(random, 600, classes) for mode in ("none", "dense")}
    strange = sample(random, 90, random.gamma(1, size=(60, 64)))
    pictures = Pictures("drawn", ["a"] * 60 + ["b"] * 30, [""] * 90, [b""] * 90)
    modes: dict[TTA, np.ndarray] = {"none": known["none"], "dense": known["dense"]}
    useless = LAST._replace(weight=np.zeros_like(LAST.weight))
    told = unfamiliar.fit(modes, dict.fromkeys(modes, strange), useless, rate, pictures)
    assert told.method == "neighbours" and told.known() is not None
    for mode, found in told.fitted.items():
        low, high = found.false_alarms.low, found.false_alarms.high
        assert low < rate < high and found.caught.mean() > 0.9, mode
        others = sample(np.random.default_rng(2), 1000, classes)
        alarms = np.mean([found.score(row) < found.least for row in others])
        assert abs(alarms - rate) < 0.4 * rate
    assert "| none |" in str(told) and "100%" in str(told)
    assert told.familiarity("float", "here").thresholds.keys() == {"none", "dense"}


def test_generated_pictures_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "SIZES", [(160, 200), (200, 160)])  # Small ones, to be quick.
    first, two = [*generated.pictures(1)], [*generated.pictures(2)]
    assert first == two[::2] and len({data for _, data in two}) == 2 * len(generated.KINDS)
    assert next(generated.pictures(1, seed=1)) != first[0]
