"""A server that is broken while clients ask: nothing is wrong, nothing is lost."""

from collections.abc import Iterator

import pytest
import yaml

from scripts import chaos
from scripts.load import MODEL


@pytest.fixture(scope="module")
def stage() -> Iterator[chaos.Stage]:
    with chaos.stage() as stage:
        yield stage


@pytest.mark.parametrize(
    "fault",
    [
        chaos.kill_worker,
        chaos.stop_worker,
        chaos.fill_disk,
        chaos.corrupt_version,
        chaos.replace_model,
        chaos.remove_model,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_fault_costs_no_answer(stage: chaos.Stage, fault: chaos.Fault) -> None:
    try:
        report = chaos.run(fault, stage)
    except chaos.SkippedError as reason:
        pytest.skip(str(reason))
    assert report.asked and (report.wrong, report.lost) == (0, 0)
    assert all(sent.outcome == "right" for sent in report.probed[-5:])


def test_a_killed_frontend_comes_back_from_its_last_whole_snapshot(stage: chaos.Stage) -> None:
    empty = stage.server.state / "logs" / "config" / "29991231235959999-snapshot.cfg"
    empty.touch()
    report = chaos.run(chaos.kill_frontend, stage)
    empty.unlink()
    assert (report.wrong, report.lost) == (0, 0)
    assert any(sent.setbacks for sent in report.asked)
    assert stage.client.describe(MODEL)[0]["modelVersion"] == "1.0"


def test_a_wrong_answer_is_noticed(stage: chaos.Stage) -> None:
    config = yaml.safe_load(stage.file("model-config.yaml"))
    config["handler"]["defaults"]["top_k"] = 1
    stage.register("3.0", {"model-config.yaml": yaml.safe_dump(config).encode()})
    with stage.load.steady(1) as account:
        chaos.until(lambda: len(account) > 5)
        stage.client.set_default(MODEL, "3.0")
        chaos.until(lambda: account[-1].outcome == "wrong")
        stage.replace("3.0", successor="1.0")
        chaos.until(lambda: account[-1].outcome == "right")
    assert {sent.outcome for sent in account} == {"right", "wrong"}
