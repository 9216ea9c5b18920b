"""A training on two machines that loses an agent, then its flow, ends with the model of one undisturbed machine."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupted import assert_same_model, config_of, steps_logged
from tiny import make_model
from two_hosts import TwoHosts, two_hosts

from infra.processes.watchdog import _descendants
from infra.training.checkpoints import checkpoints_folder, newest, read
from infra.training.config import trained_path
from infra.training.signs import node_log

FLOW = str(Path(__file__).with_name("training_flow.py"))


def awaited(found: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [2, 3])
def test_a_lost_agent_and_a_lost_flow_cost_no_step(stage: int, tmp_path: Path) -> None:
    policy = make_model(tmp_path / "policy")

    def run(pair: TwoHosts, folder: Path, *hosts: str) -> subprocess.Popen[str]:
        config = config_of("sft", folder, policy, zero_stage=stage, epochs=20)
        (folder / "config.json").write_text(config.model_dump_json())
        ranks = "1" if hosts else "2"
        arguments = [FLOW, str(folder / "config.json"), "infra.training.sft", ranks, str(tmp_path / "store"), *hosts]
        return pair.start(0, *arguments, log=folder / "flow.log")

    def past(folder: Path, step: int) -> Callable[[], bool]:
        return lambda: any(line["step"] >= step for line in steps_logged(folder))

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    with two_hosts(tmp_path) as pair:
        hosts = json.dumps({"hosts": pair.addresses, "lost_after_s": 30})
        assert run(pair, calm).wait(300) == 0, (calm / "flow.log").read_text()[-3000:]
        agent = pair.agent()

        running = run(pair, killed, hosts)
        awaited(past(killed, 5), "step 5")
        agent.kill()
        agent.wait()
        assert running.wait(120) == 1
        said = (killed / "flow.log").read_text()
        assert f"node 1 ({pair.addresses[1]}) was lost: its agent (process {agent.pid} on " in said
        assert str(node_log(killed / "train.log", 1)) in said

        agent = pair.agent()
        running = run(pair, killed, hosts)
        awaited(past(killed, 12), "step 12")
        ranks = _descendants(agent.pid)
        running.kill()
        running.wait()
        awaited(lambda: not any(Path("/proc", str(pid)).exists() for pid in ranks), "the end of the agent's ranks")
        last = newest(checkpoints_folder(config_of("sft", killed, policy).output))
        assert last
        resumed_from = read(last).step

        assert run(pair, killed, hosts).wait(300) == 0, (killed / "flow.log").read_text()[-3000:]
    losses = [[line["loss"] for line in steps_logged(folder)] for folder in (calm, killed)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert_same_model(calm, killed)
    report = json.loads(trained_path(config_of("sft", killed, policy).output).read_text())
    assert report["resumed_at"] == resumed_from
