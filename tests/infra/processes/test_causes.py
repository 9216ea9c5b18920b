"""The line of a failed process's log that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.processes.causes import LONGEST, cause, last_words

VLLM = """
(EngineCore pid=77) ERROR 11-28 [core.py:900] Traceback (most recent call last):
(EngineCore pid=77) ERROR 11-28 [core.py:900]   File "/venv/vllm/v1/engine/core.py", line 12, in run
(EngineCore pid=77) ERROR 11-28 [core.py:900] ValueError: To serve one request of 8192 tokens, 4 GiB is needed
(APIServer pid=70) Traceback (most recent call last):
(APIServer pid=70)   File "/venv/vllm/entrypoints/api_server.py", line 3, in <module>
(APIServer pid=70) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
TORCHRUN = """
[rank1]: Traceback (most recent call last):
[rank1]:   File "/venv/torch/cuda/__init__.py", line 4, in forward
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.2 GiB free.
E1128 19:00:00 torch/distributed/elastic/multiprocessing/api.py:900] failed (exitcode: 1)
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""
OTHER_RANK = """
[rank0]: infra.errors.BadInput: model m: 2 of 8,192 numbers of lm_head.weight are not finite
[rank1]: Traceback (most recent call last):
[rank1]: RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:8359. Check the logs.
"""
PYDANTIC = """
pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig
  Value error, User-specified max_model_len (9999) is greater than the derived max_model_len
    For further information visit https://errors.pydantic.dev
"""


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (
            VLLM,
            "ValueError: To serve one request of 8192 tokens, 4 GiB is needed",
        ),
        (
            TORCHRUN,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.2 GiB free.",
        ),
        (OTHER_RANK, "infra.errors.BadInput: model m: 2 of 8,192 numbers of lm_head.weight are not finite"),
        (
            "  [--x X]\n  [model_tag]\napi_server.py: error: unrecognized arguments: --nonsense\n",
            "error: unrecognized arguments: --nonsense",
        ),
        (
            "INFO all is well\nOSError: [Errno 98] address in use\nINFO shutting down\n",
            "OSError: [Errno 98] address in use",
        ),
        ("INFO loading\nKilled\n\n", "Killed"),
        (
            "RuntimeError: Engine core initialization failed. See root cause above.",
            "RuntimeError: Engine core initialization failed. See root cause above.",
        ),
        ("", ""),
        ("\n \n", ""),
    ],
)
def test_the_cause_is_the_last_line_that_names_an_error(log, found):
    assert cause(log) == found


ULIMIT = (
    "(APIServer pid=70) WARNING 11-28 12:00:00 [system_utils.py:255] Found ulimit of 1024 and failed to automatically "
    "increase with error current limit exceeds maximum limit. This can cause fd limit errors like `OSError: [Errno 24] "
    "Too many open files`. Consider increasing with ulimit -n"
)


@pytest.mark.parametrize(
    "warning",
    [
        ULIMIT,
        "12:00:00.123 | WARNING | infra.store - asked again after ConnectionError: reset",
        "INFO:root:no cache: FileNotFoundError: /root/.cache/x",
        "[W1128 12:00:00.5 socket.cpp:755] error: cannot reach host, trying again",
        "/venv/lib/x.py:12: UserWarning: not loaded: ImportError: libcudart.so.12",
    ],
)
def test_a_warning_that_names_an_error_is_no_cause(warning):
    assert cause(f"ValueError: no room\n{warning}\nbye") == "ValueError: no room"
    assert cause(f"{warning}\nKilled") == "Killed"
    assert cause(f"ERROR 11-28 [core.py:900] after a WARNING: RuntimeError: {warning}").startswith("RuntimeError: ")


def test_the_cause_of_a_wrong_setting_is_what_pydantic_says_of_it():
    said = "User-specified max_model_len (9999) is greater than the derived max_model_len"
    assert cause(PYDANTIC) == f"Value error, {said}"


def test_a_cause_is_cut():
    assert cause("ValueError: " + "x" * 10_000) == "ValueError: " + "x" * (LONGEST - 12) + " ..."


def test_the_last_words_have_the_path_the_cause_and_the_end():
    words = last_words(Path("a.log"), TORCHRUN, "[c]\n[d]")
    assert words.startswith("log: a.log; cause: torch.OutOfMemoryError: CUDA out of memory. ")
    assert words.endswith("; its last lines:\n[c]\n[d]")
    assert last_words(Path("a.log"), "", "") == "log: a.log; its last lines:\n"
