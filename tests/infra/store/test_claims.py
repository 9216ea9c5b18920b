"""Of several processes that would make one artifact one does; a claim whose process died is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from infra.store import claims
from infra.store.claims import claimed

PATH = "claims/step-key.json"

# Makes an artifact under a claim, as a step does; the settings come from the environment.
MAKER = """
import sys, time
from infra.store.claims import claimed
from infra.settings import Settings
from infra.store.store import Store
store = Store.open(Settings.load())
with claimed(store, "step", "key", beat_s=0.1, lapse_s=3):
    if not store.exists("step/key/made"):
        time.sleep(float(sys.argv[1]))
        store.write_bytes(f"step/key/by-{sys.argv[2]}", b"")
        store.create("step/key/made", sys.argv[2].encode())
"""


def environment(store, s3_url):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("BOLT_", "AWS_"))}
    if store.is_local:
        return env | {"BOLT_STORE": store.root}
    from s3_for_tests import KEY, SECRET

    keys = {"BOLT_ACCESS_KEY_ID": KEY, "BOLT_SECRET_ACCESS_KEY": SECRET, "BOLT_REGION": "us-east-1"}
    return env | keys | {"BOLT_STORE": store.root, "BOLT_ENDPOINT_URL": s3_url}


def maker(store, s3_url, name, seconds=0.3):
    command = [sys.executable, "-c", MAKER, str(seconds), name]
    return subprocess.Popen(command, env=environment(store, s3_url))


def made(store):
    return sorted(path for path in store.list("step/key") if "by-" in path)


def test_of_four_processes_at_once_one_makes_it(store, s3_url):
    running = [maker(store, s3_url, f"p{n}") for n in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert len(made(store)) == 1
    assert made(store) == [f"step/key/by-{store.read_bytes('step/key/made').decode()}"]
    assert not store.list("claims")


def test_a_killed_holder_is_followed_at_once(store, s3_url, monkeypatch):
    monkeypatch.setattr(claims, "POLL_S", 0.05)
    first = maker(store, s3_url, "first", seconds=60)
    wait_for(lambda: store.exists(PATH))
    first.send_signal(signal.SIGKILL)
    first.wait()
    began = time.monotonic()
    with claimed(store, "step", "key", lapse_s=600):
        assert time.monotonic() - began < 30
    assert not store.list("claims")


def test_a_stopped_holder_is_followed_when_its_claim_lapses_and_leaves_the_new_one_alone(local_store, monkeypatch):
    """A process that hangs (here: SIGSTOP) and comes back finds another's claim and does not touch it."""
    monkeypatch.setattr(claims, "POLL_S", 0.05)
    first = maker(local_store, "", "first", seconds=1)
    wait_for(lambda: local_store.exists(PATH))
    first.send_signal(signal.SIGSTOP)
    with claimed(local_store, "step", "key", lapse_s=0.5):
        mine = json.loads(local_store.read_bytes(PATH))["holder"]
        local_store.create("step/key/made", b"mine")
        first.send_signal(signal.SIGCONT)
        assert first.wait(30) == 0
        assert json.loads(local_store.read_bytes(PATH))["holder"] == mine
    assert local_store.read_bytes("step/key/made") == b"mine"
    assert not local_store.list("claims")


def test_a_claim_of_another_machine_lapses_only_when_it_is_not_renewed(local_store, monkeypatch):
    monkeypatch.setattr(claims, "POLL_S", 0.02)
    claim = {"holder": "other", "machine": "elsewhere", "pid": 1, "began": 0}
    stop = threading.Event()

    def renew():
        beat = 0
        while not stop.wait(0.05):
            beat += 1
            local_store.write_bytes(PATH, json.dumps({**claim, "beat": beat}).encode())

    local_store.write_bytes(PATH, json.dumps({**claim, "beat": 0}).encode())
    renewing = threading.Thread(target=renew)
    renewing.start()
    threading.Timer(1.0, stop.set).start()
    began = time.monotonic()
    with claimed(local_store, "step", "key", lapse_s=0.5):
        assert time.monotonic() - began > 1.2  # renewed for a second, then half a second of silence
    renewing.join()


def test_a_living_holder_is_not_dead_whatever_the_clock_says(monkeypatch):
    mine = claims._content("me", 0)
    moved = psutil._pslinux.boot_time() + 3600
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: moved)
    assert not claims._is_dead(mine)
    assert claims._is_dead(json.dumps({**json.loads(mine), "began": 1}).encode())


def test_a_torn_claim_lapses(local_store, monkeypatch):
    monkeypatch.setattr(claims, "POLL_S", 0.02)
    local_store.write_bytes(PATH, b'{"holder"')
    with claimed(local_store, "step", "key", lapse_s=0.2):
        assert json.loads(local_store.read_bytes(PATH))["pid"] == os.getpid()


def test_an_error_in_the_block_gives_the_claim_up(store):
    with pytest.raises(ZeroDivisionError), claimed(store, "step", "key"):
        raise ZeroDivisionError
    assert not store.list("claims")


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
