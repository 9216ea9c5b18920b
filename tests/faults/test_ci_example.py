"""The steps of .github/workflows/run.yml, run here with bash: a real Prefect server, a worker, a small deployment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT, PrefectServer, started

WORKFLOWS = ROOT / ".github" / "workflows"
FLOW = """
from prefect import flow
from prefect.artifacts import create_markdown_artifact

@flow
def small(fails: bool = False):
    create_markdown_artifact("# BOLT\\n\\n| stage | accuracy |\\n|---|---|\\n| sft | 0.5 |\\n", key="bolt-summary")
    if fails:
        raise ValueError("as requested")
"""
DEPLOYMENT = {"name": "tiny", "entrypoint": "small.py:small", "work_pool": {"name": "ci"}}
KEY = "pnu_planted_api_key_71fe"


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((WORKFLOWS / name).read_text())


def steps(name: str) -> dict[str, str]:
    """The shell steps of a workflow by name."""
    (job,) = workflow(name)["jobs"].values()
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step}


@pytest.fixture
def project(tmp_path: Path, prefect: PrefectServer):
    """A project with one small deployment, and a worker that runs it."""
    (tmp_path / "small.py").write_text(FLOW)
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump({"name": "tiny", "deployments": [DEPLOYMENT]}))
    env = prefect.environment()
    create = [sys.executable, "-m", "prefect", "work-pool", "create", "ci", "--type", "process", "--overwrite"]
    subprocess.run(create, env={**os.environ, **env}, check=True, capture_output=True)
    worker = started(["-m", "prefect", "worker", "start", "--pool", "ci"], tmp_path / "worker.log", env)
    yield tmp_path, env
    worker.kill()  # its runs have ended; how a worker ends when asked is Prefect's own matter
    worker.wait(30)


def shell(step: str, place: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A step as GitHub runs it under `shell: bash`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "BOLT_"))}
    env = {**kept, **env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PREFECT_API_KEY": KEY}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step]
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.faults
@pytest.mark.parametrize("fails", [False, True])
def test_the_steps_deploy_run_wait_and_summarise(project, fails):
    place, env = project
    summary = place / "summary.md"
    parameters = '{"fails": true}' if fails else "{}"
    env = {**env, "GITHUB_STEP_SUMMARY": str(summary), "DEPLOYMENT": "small/tiny", "PARAMETERS": parameters}
    own = steps("run.yml")
    assert list(own) == ["Set up", "Deploy", "Run and wait", "Summary"]
    deployed = shell(own["Deploy"], place, env)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    run = shell(own["Run and wait"], place, env)
    assert (run.returncode != 0) == fails, run.stdout + run.stderr
    summarised = shell(own["Summary"], place, env)
    assert summarised.returncode == 0, summarised.stderr
    text = summary.read_text()
    assert re.search(r"^\*\*[a-z-]+\*\*: " + ("Failed" if fails else "Completed"), text)
    assert "| sft | 0.5 |" in text
    assert KEY not in "".join(each.stdout + each.stderr for each in (deployed, run, summarised)) + text


@pytest.mark.parametrize("name", ["test.yml", "run.yml"])
def test_actions_are_pinned_and_no_step_spells_a_secret(name):
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    assert "secrets." not in yaml.safe_dump({name: part for name, part in found.items() if name != "jobs"})
    (job,) = found["jobs"].values()
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", each) for each in used)
    assert not [step for step in job["steps"] if "secrets." in str(step.get("env")) and "prefect" not in step["run"]]
    for text in steps(name).values():
        assert "secrets." not in text
        assert "${{" not in text  # the text of a tag or a variable never becomes shell code
        assert not re.search(r"API_KEY|API_URL|set -x|\benv\b|printenv", text)


def test_the_tests_run_on_every_push():
    assert "push" in workflow("test.yml")[True]  # YAML reads `on` as true
    assert steps("test.yml")["Test"] == ".ci/run"
    assert "\nmake test" in (ROOT / ".ci" / "run").read_text()
