"""The report of a run: figures gathered from its artifacts, and one HTML page with tables, plots and a reader.

The page needs no server. Model text is untrusted: the page contains it as JSON and shows it as text only
(`tasks/report/page/reader.js`), and the page's Content-Security-Policy lets only the project's own script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from infra.store.manifest import BadArtifact, Manifest, Ref, expect, load, ref_of
from infra.store.store import Store
from infra.store.tables import read_rows
from tasks.evaluation.problems import Verifiable, step_of, topic_of
from tasks.report import plot
from tasks.report.reader import held_out_items, sliced
from tasks.training.card import TRAINED_BY

log = logging.getLogger(__name__)

Made: TypeAlias = dict[str, list[Ref]]
Rows: TypeAlias = list[dict[str, Any]]
Found: TypeAlias = Mapping[str, Sequence[Manifest]]
Seconds: TypeAlias = Mapping[str, float]
PAGE = Path(__file__).parent / "page"
CAPTIONS = {
    "stages": "Held-out problems, sampled and greedily; lengths are mean tokens per response",
    "gains": "Paired differences in accuracy on the same problems",
    "topics": "Accuracy of the sampled answers by topic",
    "by-steps": "Accuracy of the sampled answers, and thought tokens, by the number of steps of a problem",
    "steps": "Seconds here: in this run, cached or not. Seconds to make: in the run that made it, if it has a summary",
}
"""What the tables show that every method has."""
TITLES = {
    "stages": "Accuracy and response length by stage, with 95 % intervals",
    "by-steps": "Accuracy and length of the thoughts by stage and number of steps of a problem",
    "steps": "Seconds to make each step's artifacts",
}
"""What the plots show that every method has."""
LISTED = 200  # characters of a query in the reader's list


def made_by(store: Store, summary: Mapping[str, Any]) -> Made:
    """All artifacts of a run, by step; steps that sample in shards have all their shards, in order.

    A summary names one key per step; the shards are found among the inputs of the step that read them all.

    Raises:
        BadArtifact: an artifact of the run is missing or damaged.
    """
    made: Made = {}
    for record in summary["steps"]:
        manifest = load(store, record["name"], record["key"])
        if manifest is None:
            raise BadArtifact(
                f"{store.uri(record['name'], record['key'])} is missing: start the run again to remake it"
            )
        made[manifest.step] = [ref_of(store, manifest)]
        shards = [ref for name, ref in manifest.inputs.items() if "/" in name]  # an argument's numbered tables
        made |= {ref.step: [each for each in shards if each.step == ref.step] for ref in shards}
    return made


def manifests(store: Store, made: Made) -> dict[str, list[Manifest]]:
    """The manifests of all artifacts, by step. Raises `BadArtifact` if one is missing or damaged."""
    return {step: [expect(store, ref) for ref in refs] for step, refs in made.items()}


def numbered(names: Iterable[str], prefix: str) -> list[str]:
    """The names that consist of `prefix` and an iteration's number, in the order of the iterations."""
    found = [name for name in names if name.startswith(prefix) and name[len(prefix) :].isdigit()]
    return sorted(found, key=lambda name: int(name[len(prefix) :]))


def stage_rows(stages: Rows) -> Rows:
    """The table of stages; lengths are mean tokens per response."""
    return [
        {
            "stage": stage["name"],
            "accuracy (sampled)": f"{stage['accuracy']:.3f}",
            "95 % interval": f"{stage['accuracy_low']:.3f} to {stage['accuracy_high']:.3f}",
            "greedy": f"{stage['greedy_accuracy']:.3f}",
            "thought tokens": f"{stage['thought_tokens']:.1f}",
            "solution tokens": f"{stage['solution_tokens']:.1f}",
            "truncated": f"{stage['truncated']:.1%}",
            "malformed": f"{stage['malformed']:.1%}",
        }
        for stage in stages
    ]


def points(gain: float) -> str:
    """A difference of two shares, in percentage points with a sign."""
    return f"{100 * gain:+.1f}"


def gain_rows(gains: Rows) -> Rows:
    """The table of paired gains in accuracy, in percentage points."""
    return [
        {
            "from": gain["from"],
            "to": gain["to"],
            "paired gain, points": points(gain["gain"]),
            "95 % interval": f"{points(gain['low'])} to {points(gain['high'])}",
        }
        for gain in gains
    ]


def topic_rows(store: Store, made: Made, benchmark: Verifiable, stages: Sequence[str]) -> Rows:
    """The table of sampled accuracy by stage and topic (or a benchmark's category), sorted by topic."""
    (problems,) = made[step_of("problems", benchmark)]
    topics = {row["query_id"]: topic_of(row) or "" for row in read_rows(store, problems)}
    count = Counter(topics.values())
    rows = {topic: {"topic": topic or "(none)", "problems": count[topic]} for topic in sorted(count)}
    for stage in stages:
        correct, graded = Counter[str](), Counter[str]()
        (grades,) = made[step_of("grades", benchmark, stage, "sampled")]
        for row in read_rows(store, grades, ["problem_id", "correct"]):
            graded[topics[row["problem_id"]]] += 1
            correct[topics[row["problem_id"]]] += row["correct"]
        for topic, row in rows.items():
            row[stage] = f"{correct[topic] / graded[topic]:.3f}" if graded[topic] else ""
    return [*rows.values()]


def steps_rows(stages: Rows) -> Rows:
    """The table of accuracy and thought tokens by stage and number of steps; empty if no problem states it."""
    rows: Rows = [{"steps": plot.range_text(group), "problems": group["problems"]} for group in stages[0]["by_steps"]]
    for stage in stages:
        for row, group in zip(rows, stage["by_steps"], strict=True):
            row[stage["name"]] = f"{group['accuracy']:.3f} ({group['thought_tokens']:.1f})"
    return rows


def making_seconds(store: Store, summary: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that each step took in the run that made its artifact: this run, or an earlier one that has a summary.

    A step is missing if the run that made it wrote no summary (because it was killed, say), or an incomplete one.
    """
    wanted = {(record["name"], record["key"]) for record in summary["steps"]}
    paths = (path for path in store.list("runs") if path.endswith("/summary.json"))
    seconds: dict[str, float] = {}
    for made in chain([_seconds_in(summary)], (_seconds_in_file(store, path) for path in paths)):
        seconds |= {step: made[step, key] for step, key in wanted & made.keys() if step not in seconds}
        if len(seconds) == len(wanted):
            break
    return seconds


def _seconds_in(summary: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Seconds of the steps that a run did not find cached, by name and key."""
    return {(each["name"], each["key"]): float(each["seconds"]) for each in summary["steps"] if not each["cached"]}


def _seconds_in_file(store: Store, path: str) -> dict[tuple[str, str], float]:
    """As `_seconds_in`, for an earlier run's summary; empty if it is missing, or (with a warning) is no summary."""
    found = store.read_if_there(path)
    try:
        return {} if found is None else _seconds_in(json.loads(found))
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is no summary of a run, so its timings are left out (%s)", store.uri(path), repr(error))
        return {}


def step_rows(summary: Mapping[str, Any], found: Found, seconds: Seconds) -> Rows:
    """The table of times and tokens by step; tokens are those sampled, or those trained on in all epochs.

    `seconds`: as `making_seconds`. The column `seconds here` has the time in this run, cached or not.
    """
    rows = []
    for record in summary["steps"]:
        shards, took = found[record["name"]], seconds.get(record["name"])
        counts = [shard.counts for shard in shards]
        tokens = sum(each.get("completion_tokens") or each.get("tokens_seen") or 0 for each in counts)
        rows.append(
            {
                "step": record["name"],
                "cached": "yes" if record["cached"] else "no",
                "seconds here": round(record["seconds"], 1),
                "seconds to make": "" if took is None else round(took, 1),
                "shards": len(shards),
                "rows": sum(shard.rows for shard in shards),
                "tokens": tokens or "",
                "tokens/s": round(tokens / took) if tokens and took else "",
            }
        )
    return rows


def curve(model: Manifest) -> list[dict[str, float]]:
    """What a model's trainer logged at each step, without the last line, which has totals."""
    return [line for line in model.counts["curve"] if "loss" in line]


def indexed(sets: Mapping[str, Iterable[dict[str, Any]]], index: Rows) -> Iterator[Rows]:
    """The items of all sets in slices; on the way, what the page needs to list and filter them is put into `index`."""
    slices = ((name, held) for name, items in sets.items() for held in sliced(items))
    for number, (name, held) in enumerate(slices):
        for place, item in enumerate(held):
            outcomes = item.pop("outcomes")
            listed = {"query": item["query"][:LISTED], "topic": item["topic"], "shares": item.pop("shares")}
            index.append({"set": name, "slice": number, "place": place, "outcomes": outcomes, **listed})
        yield held


@dataclass(frozen=True)
class Content:
    """What the report of a run shows.

    Attributes:
        title: the method's name.
        template: the file in `page/` that lays tables and plots out.
        tables: rows by name; each has a caption.
        plots: SVG by name; each has a title. That of a training has its step's name.
        trainings: the names of the steps that trained a model, in order.
        sets: the reader's sets of items by name.
    """

    title: str
    template: str
    tables: dict[str, Rows]
    captions: dict[str, str]
    plots: dict[str, bytes]
    titles: dict[str, str]
    trainings: list[str]
    sets: dict[str, Iterable[dict[str, Any]]]


def page_environment() -> Environment:
    """How the templates in `page/` are rendered: text is escaped, a missing value is an error, JSON is ASCII only."""
    jinja = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    jinja.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return jinja


def write_page(write: Callable[[bytes], object], summary: Mapping[str, Any], content: Content) -> None:
    """Write the page of a run, in UTF-8.

    Args:
        write: called with the page, piece by piece.
        summary: a run's summary.json.

    Raises:
        BadArtifact: an artifact of the run is missing or damaged.
    """
    script, style = ((PAGE / name).read_text() for name in ("reader.js", "report.css"))
    index: Rows = []
    template = page_environment().get_template(content.template)
    page = template.stream(
        summary=summary,
        title=content.title,
        method=TRAINED_BY.get(summary["model"].partition("-")[0], ("",))[0],
        tables=content.tables,
        captions=content.captions,
        plots={name: data_uri(svg) for name, svg in content.plots.items()},
        alternatives=content.titles,
        trainings=content.trainings,
        script=Markup(script),  # noqa: S704  # the project's own
        style=Markup(style),  # noqa: S704
        script_hash=content_hash(script),
        style_hash=content_hash(style),
        slices=indexed(content.sets, index),
        index=index,
    )
    page.enable_buffering(50)
    for piece in page:
        write(piece.encode())


def training_title(step: str) -> str:
    """What the plot of a training shows."""
    return f"What the trainer of {step} logged: loss, learning rate, gradient norm and speed at each step"


def common_content(
    store: Store,
    summary: Mapping[str, Any],
    made: Made,
    found: Found,
    *,
    title: str,
    template: str,
    trained: list[str],
    max_answers: int,
) -> Content:
    """What every method's report shows; a method adds its own tables, plots and sets.

    Args:
        trained: the names of the steps that trained a model.
        max_answers: most held-out answers in the reader, of all stages together; the first problems are shown.
    """
    seconds = making_seconds(store, summary)
    stages, names = summary["stages"], [stage["name"] for stage in summary["stages"]]
    in_order = {each["name"]: seconds[each["name"]] for each in summary["steps"] if each["name"] in seconds}
    return Content(
        title=title,
        template=template,
        tables={
            "stages": stage_rows(stages),
            "gains": gain_rows(summary["gains"]),
            "topics": topic_rows(store, made, summary["benchmark"], names),
            "by-steps": steps_rows(stages),
            "steps": step_rows(summary, found, seconds),
        },
        captions=dict(CAPTIONS),
        plots={
            "stages": plot.stages_plot(stages),
            **({"by-steps": plot.by_steps_plot(stages)} if stages[0]["by_steps"] else {}),
            **{step: plot.training_plot(step, curve(found[step][0])) for step in trained},
            "steps": plot.steps_plot(in_order),
        },
        titles=TITLES | {step: training_title(step) for step in trained},
        trainings=trained,
        sets={"held-out problems": held_out_items(store, made, summary["benchmark"], names, max_answers)},
    )


def content_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy allows one script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_uri(svg: bytes) -> str:
    """A picture as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
