"""The documentation names what exists: parameters, links, paths, modules; its examples fit the flows."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from flows.__main__ import flow_name
from flows.bolt import BoltConfig
from infra.text.markdown import with_part
from tasks.report.study import study_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
LOGS = ("docs/LOG.md", "docs/log/", "CHANGELOG.md")  # dated notes may name what is gone since
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"(?:flows|tasks|cot_formats|evals|infra|nano)(?:\.[a-z_]\w*)+")
FOLDERS = {"bench", "cot_formats", "docs", "evals", "flows", "infra", "nano", "prompts", "tasks", "tests", ".ci"}
DEPLOYMENTS = {
    f"{flow_name(each)}/{each['name']}" for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
}


def prose(name: str) -> str:
    return FENCED.sub("", (ROOT / name).read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_paths(text: str) -> set[str]:
    """What looks like a path of the repository among the words in backticks."""
    words = {code.partition(":")[0].rstrip("/") for code in CODE.findall(text)} - DEPLOYMENTS
    return {
        word
        for word in words
        if re.fullmatch(r"[\w./-]+", word)
        and (word.split("/")[0] in FOLDERS if "/" in word else re.search(r"\w\.(md|toml|txt|yaml)$", word))
    }


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parameters():
    return script("parameters")


@pytest.mark.parametrize("name", ["study", "still2"])
def test_a_page_shows_its_study_in_the_repository(name):
    page = (ROOT / "docs" / f"{name}.md").read_text()
    found = json.loads((ROOT / "docs" / f"{name}.json").read_text())
    assert with_part(page, "study", study_page(found)) == page, f"run: python docs/study.py docs/{name}.md"


def test_a_study_made_in_parts_is_one_study():
    def part(arm, *cells, failed=()):
        rows = [
            {"arm": arm, "seed": seed, "stage": stage, "of": n} for seed, n in cells for stage in ("sft", "online-1")
        ]
        costs = {f"{arm}/{seed}": {"sampled": n, "trained": n} for seed, n in cells}
        return {"arms": {arm: {}}, "rows": rows, "cells": costs, "failed": {f"{arm}/{seed}": "no" for seed in failed}}

    found = script("study").merged([part("b", (2, 1), failed=[1]), part("a", (1, 1)), part("b", (1, 2), failed=[3])])
    assert [*found["arms"]] == ["b", "a"]
    assert [(row["arm"], row["seed"], row["stage"], row["of"]) for row in found["rows"]] == [
        ("b", 1, "sft", 2),
        ("b", 1, "online-1", 2),
        ("b", 2, "sft", 1),
        ("b", 2, "online-1", 1),
        ("a", 1, "sft", 1),
        ("a", 1, "online-1", 1),
    ]
    assert found["failed"] == {"b/3": "no"}


def test_the_parameter_tables_are_up_to_date(parameters):
    assert parameters.main(["--check"]) == 0, "run: python docs/parameters.py"


def test_stale_or_missing_parameter_tables_are_told(parameters, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parameters, "TARGET", tmp_path / "parameters.md")
    assert parameters.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert parameters.main([]) == 0
    assert parameters.main(["--check"]) == 0
    parameters.TARGET.write_text(parameters.TARGET.read_text().replace("`16384`", "`4096`"))
    assert parameters.main(["--check"]) == 1
    assert parameters.main(["--chek"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name):
    page, broken = ROOT / name, []
    for link in LINK.findall(prose(name)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(LOGS)])
def test_every_path_named_exists(name):
    missing = {
        path for path in named_paths(prose(name)) if not (ROOT / path).exists() and not (ROOT / "docs" / path).exists()
    }
    assert missing == set()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(LOGS)])
def test_every_module_named_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = {code for code in CODE.findall(prose(name)) if MODULE.fullmatch(code)}
    named |= {
        found for found in re.findall(r"(?:^from|python -m) (\w+\.\w+)", text, re.MULTILINE) if MODULE.match(found)
    }
    for module in named:
        package, part, *_ = module.split(".")
        found = (ROOT / package / f"{part}.py").is_file() or (ROOT / package / part).is_dir()
        assert found, f"{name} names {module}"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(LOGS)])
def test_every_preset_in_a_command_exists(name):
    """`python -m flows FLOW/NAME` and `deployment run 'FLOW/NAME'`; on KubeRay, its copy `FLOW/NAME-ray`."""
    text = (ROOT / name).read_text(encoding="utf-8")
    commanded = set(re.findall(r"(?:-m flows|deployment run) '?(\w+/[\w-]+)", text))
    assert {each.removesuffix("-ray") for each in commanded} <= DEPLOYMENTS


def test_the_deployment_for_real_models_fits_its_flow():
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (entry,) = (each for each in entries if (each["name"], each["entrypoint"]) == ("llama-8b", "flows/bolt.py:bolt"))
    config = BoltConfig.model_validate(entry["parameters"]["config"])
    for stage in (config.sft, config.online.dpo):
        assert stage.accumulation(stage.ranks) == 16
    assert (config.online.iterations, config.online.queries_per_iteration) == (3, 33_000)
    assert config.bootstrap.generate.max_tokens < config.serving.policy.max_model_len
    for stage in (config.bootstrap, config.online):  # the problems are held out of the queries, by their column
        held_out = stage.queries.without(config.evaluate.problems).decontaminate.held_out
        assert {each.column for each in held_out if "MATH-500" in str(each.dataset)} == {"problem"}
