"""The method with a real pre-trained model, as small as it can be: every stage once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from small import environment

from infra.errors import BadInput
from infra.settings import PROJECT_ROOT
from smollm2.weights import packaged_weights, write_model

pytestmark = pytest.mark.slow
SMALL = (
    "config.serving.policy_servers=1",
    "config.bootstrap.queries.draw.limit=12",
    "config.bootstrap.prompt.examples=3",
    "config.bootstrap.generate.max_truncated_share=1",
    "config.bootstrap.shards=1",
    "config.bootstrap.select.drop_wrong=false",  # a dozen queries may have no right answer
    "config.bootstrap.generate.samples=16",
    "config.sft.batch=4",  # enough steps to learn the form from a dozen rows
    "config.sft.micro_batch=4",
    "config.sft.learning_rate=3e-4",
    "config.online.iterations=1",
    "config.online.queries_per_iteration=12",
    "config.online.generate.samples=4",
    "config.online.generate.max_truncated_share=1",
    "config.online.guards.max_truncated_share=1",  # so small a run seldom keeps to the format
    "config.online.guards.max_malformed_share=1",
    "config.online.pair.boundary=null",
    "config.online.pair.min_samples=2",
    "config.online.shards=1",
    "config.evaluate.problems.draw.limit=6",
    "config.evaluate.generate.samples=1",
    "config.evaluate.generate.max_truncated_share=1",
    "config.evaluate.shards=1",
)


@pytest.fixture(scope="module")
def instruct() -> Path:
    try:
        packaged_weights()
    except BadInput as error:
        pytest.skip(str(error))
    folder = PROJECT_ROOT / ".bolt" / "smollm2" / "instruct"
    write_model(folder)
    return folder


def test_the_model_folder_holds_each_tensor_once_in_bfloat16(instruct):
    with safe_open(instruct / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
        kinds = {tensors.get_slice(name).get_dtype() for name in names}
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names  # tied to the embedding
    assert kinds == {"BF16"}
    assert "quantization_config" not in json.loads((instruct / "config.json").read_text())


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_every_stage_runs_with_a_real_pretrained_model(instruct, tmp_path):
    command = [sys.executable, "-m", "flows", "bolt/smollm2", "--set", f"config.model={instruct}"]
    for assignment in SMALL:
        command += ["--set", assignment]
    with (tmp_path / "log.txt").open("w") as log:
        done = subprocess.run(
            command, cwd=PROJECT_ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert done.returncode == 0, (tmp_path / "log.txt").read_text()[-6000:]
    summary = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["instruct", "in-context", "sft", "online-1"]
    rows = {step["name"]: step["rows"] for step in summary["steps"]}
    assert rows["responses"] == 12 * 16
    assert rows["longcot"] > 0
    assert rows["pairs-1"] > 0
    assert summary["benchmark"] == "everyday"
