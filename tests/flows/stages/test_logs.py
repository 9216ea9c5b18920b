"""What the terminal shows of a failing run, and what the log file keeps."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small import environment

from flows.__main__ import FAILED, WRONG_INPUT
from flows.stages.logs import LONGEST, ForScreen, logged, paragraph
from infra.errors import BadInput
from infra.processes.torchrun import TrainerError
from infra.serving.vllm_server import ServerError
from infra.settings import PROJECT_ROOT

END = "; log: PATH; cause: no memory; its last lines:\n[a]\n[b]"
SERVER = ServerError(f"vLLM server of M ended with status 2{END}")
TRAINER = TrainerError(f"infra.training.sft on 2 ranks ended with status 1{END}")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (SERVER, "ServerError: vLLM server of M ended with status 2; log: PATH; cause: no memory"),
        (TRAINER, "TrainerError: infra.training.sft on 2 ranks ended with status 1; log: PATH; cause: no memory"),
        (BadInput("q.jsonl, row 3: no JSON"), "q.jsonl, row 3: no JSON"),
        (KeyError("reward"), "KeyError: 'reward'"),
        (ValueError("x" * 9_999), f"ValueError: {'x' * (LONGEST - 12)} ..."),
    ],
)
def test_an_error_is_one_paragraph(error, shown):
    assert paragraph(error) == shown


def lines(told: bool, *messages: str) -> list[str]:
    formatter = ForScreen(logging.Formatter("%(message)s"), told=told)
    try:
        raise SERVER
    except ServerError:
        trace = sys.exc_info()
    return [
        formatter.format(logging.LogRecord("prefect", logging.ERROR, "f", 1, each, None, trace)) for each in messages
    ]


def test_prefects_lines_do_not_repeat_the_error():
    text = str(SERVER)
    of_task = f"Finished in state Failed('Task run encountered an exception ServerError: {text}')"
    of_flow = f"Encountered exception during execution: {SERVER!r}"
    retry = f"Task run failed with exception: {SERVER!r} - Retry 1/2 will start 5 second(s) from now"
    plain = "responses 1 of 2 done"
    short = "ServerError('vLLM server of M ended with status 2; log: PATH; cause: no memory"
    told = [
        "Finished in state Failed",
        "Encountered exception during execution",
        f"Task run failed with exception: {short} - Retry 1/2 will start 5 second(s) from now",
        plain,
    ]
    assert lines(True, of_task, of_flow, retry, plain) == told
    on_worker = [told[0], f"Encountered exception during execution: {short}", *told[2:]]
    assert lines(False, of_task, of_flow, retry, plain) == on_worker


def test_the_file_has_the_trace_and_the_screen_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path))
    with logged() as path:
        try:
            raise SERVER
        except ServerError:
            logging.getLogger("flows").exception("Finished in state Failed('...')")
    assert "Traceback" in path.read_text()
    assert "[b]" in path.read_text()
    assert not [each for each in logging.getLogger().handlers if isinstance(each.formatter, ForScreen)]


@pytest.mark.parametrize("folder", ["/proc/self/status", "/proc/x", "~no-such-user/work"])
def test_a_work_folder_that_cannot_be_is_bad_input(monkeypatch, folder):
    monkeypatch.setenv("BOLT_WORK_DIR", folder)
    with pytest.raises(BadInput, match=f"BOLT_WORK_DIR: no logs can be kept in {folder}"), logged():
        pytest.fail("there is a log")


def test_the_work_folder_may_be_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BOLT_WORK_DIR", "~/work")
    with logged() as path:
        assert path.is_relative_to(tmp_path / "work")


FAULTS = pytest.mark.faults  # small: tests/flows/test_bad_input.py
BAD = "config.bootstrap.queries.sources.0.path=nowhere.jsonl"
NO_SERVER = 'config.serving.policy.extra_args=["--nonsense"]'
"""Each a mistake of the user's; the second is found by vLLM."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("terminal")


def run(command: list[str], place: Path, **more: str) -> tuple[int, str]:
    """The status of a command, and all that its terminal shows."""
    own = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", **more}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=PROJECT_ROOT,
        env=environment(place) | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (BAD, WRONG_INPUT, "wrong input: input file nowhere.jsonl does not exist"),
        pytest.param(NO_SERVER, FAILED, "; cause: error: unrecognized arguments: --nonsense", marks=FAULTS),
    ],
)
def test_a_failing_run_shows_its_error_once_and_without_a_trace(place, change, status, said):
    """Behind a proxy that nothing listens on, too: Prefect's own server is on this machine."""
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    found, shown = run(
        ["-m", "flows", "bolt/nano", "--set", change, "--set", "config.bootstrap.shards=1"], place, **proxies
    )
    assert found == status, shown
    assert "Traceback" not in shown
    assert shown.count(said) == 1, shown
    assert len(shown.splitlines()) < 60, shown
    log = re.findall(r"log(?:, with the trace)?: (.*flows-.*\.log)", shown)[-1]
    assert "Traceback" in Path(log).read_text()


ON_WORKER = """
import sys
from uuid import UUID
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.engine import handle_engine_signals
from flows.__main__ import changed, deployment, flow_of

each = deployment("bolt/nano")
flow = flow_of(each)
with handle_engine_signals(UUID(int=1)):
    flow(**changed(each["parameters"], [sys.argv[1]]))
"""


def test_a_run_on_a_worker_shows_its_error_once_and_without_a_trace(place):
    """As the process that a worker starts: Prefect's engine prints the trace of the flow's error a second time."""
    status, shown = run(["-c", ON_WORKER, BAD], place, PREFECT__FLOW_RUN_ID="1", NO_PROXY="*")
    assert status == 1
    assert "Traceback" not in shown
    assert shown.count("input file nowhere.jsonl does not exist") == 1, shown
    (log,) = re.findall(r"log, with the traces of errors: (.*\.log)", shown)
    assert Path(log).read_text().count("Traceback") >= 2
    assert os.path.dirname(log) == str(place / "work" / "logs")
