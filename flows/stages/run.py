"""A flow run: its artifact store, its servers, and the steps done so far. The flows are written in terms of `Run`."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from prefect import get_run_logger
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel

from cot_formats.responses import Format
from flows.stages.common import Common, Estimates, Trains
from flows.stages.logs import log_on_worker, show_own_logs
from flows.stages.memory import cached_config, check_trainings, device
from flows.stages.serving import serving
from infra.cluster.config import RayConfig
from infra.errors import BadInput
from infra.processes.watchdog import end_all
from infra.serving.model_checks import (
    check_policy,
    check_reward_model,
    check_served,
    check_trained,
    loaded_tokenizer,
)
from infra.serving.servers import Role, Servers
from infra.serving.vllm_server import runs_on_cpu
from infra.settings import Settings
from infra.steps.step import SERVERS, Job, Plan, Step
from infra.store.hub import downloaded
from infra.store.manifest import Ref
from infra.store.model_files import CONFIG, ModelFiles, language_part
from infra.store.models import import_model, imported_ref
from infra.store.parts import find
from infra.store.store import Store
from infra.store.tables import read_rows
from infra.text.chat import generation_prefix
from infra.training.config import METHODS, Recipe
from infra.training.hosts import HERE, Hosts
from infra.training.memory import Sizes, llama_sizes, sizes_of
from infra.training.nodes import check_hosts
from infra.training.switches import ranks_of
from infra.training.trackers import check_trackers
from tasks.training.render import check_prefix

if TYPE_CHECKING:
    from infra.cluster.ray_cluster import Cluster

log_on_worker()  # here, since every flow imports this, before Prefect checks its parameters

PENDING = "pending"
# Shards that run at once: 4 x in_flight requests (of n samples each) are more than a server decodes at a time.
SHARDS_AT_ONCE = 4  # with all 400 of a step, its sockets and its texts in memory would be too many
TASK_RUNNER: TaskRunner[PrefectFuture[Any]] = ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE)  # type: ignore[assignment]


class StepRecord(BaseModel, frozen=True):
    """One step of a run: wall-clock seconds, whether all of it was cached, and the rows of its artifacts."""

    name: str
    key: str
    seconds: float
    cached: bool
    rows: int


class Run:
    """Does steps as Prefect tasks. A dry run only looks their artifacts up."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        servers: Servers,
        estimates: Estimates,
        scratch: Path | None,
        hosts: Hosts = HERE,
        cluster: Cluster | None = None,
        ray: RayConfig | None = None,
    ) -> None:
        self.store, self.settings, self.servers, self.estimates = store, settings, servers, estimates
        self.hosts, self.cluster = hosts, cluster
        self.nodes, self.elsewhere = ray.training_nodes if ray else hosts.nodes, ray is not None
        self.dry, self.scratch = scratch is not None, Settings(store=str(scratch)) if scratch else settings
        self.rehearsed: set[tuple[str, str]] = set()  # what a dry run has made in its scratch store
        self.steps: list[StepRecord] = []
        self.done: dict[tuple[str, str], Ref] = {}
        self.task_runs: dict[tuple[str, str], PrefectFuture[Any]] = {}  # by the step and key that each made or found
        self.folders: dict[str, Path] = {}  # the model folders that the user named, by digest
        self.tokens, self.hours = 0, 0.0
        self.log = get_run_logger()

    def do(
        self,
        step: Step,
        name: str,
        *,
        expected_tokens: int = 0,
        expected_rows: int = 0,
        rehearse: bool = False,
        gpus: int = 0,
        **arguments: Any,
    ) -> Ref:
        """Make or find the artifact `name` of a step's call. What this run has made is not looked up again.

        The `expected_` figures are for the plan of a dry run, and for the log line at the step's start. With
        `rehearse`, a dry run does the step in a scratch store if its inputs were made there too, so that its rows and
        the keys of later steps are known. `gpus`: how many the step itself needs, besides servers; a cluster finds a
        node that has them.
        """
        return self._made(step, name, [arguments], expected_tokens, expected_rows, rehearse=rehearse, gpus=gpus)[0]

    def do_shards(
        self, step: Step, name: str, shards: int, *, expected_tokens: int = 0, rehearse: bool = False, **arguments: Any
    ) -> list[Ref]:
        """Make a step's `shards` artifacts concurrently; the step gets `shard` and `shards` as arguments. See `do`.

        A failing shard stops no other. When all have ended, the first failure is raised.
        """
        calls = [{**arguments, "shard": shard, "shards": shards} for shard in range(shards)]
        return self._made(step, name, calls, expected_tokens, rehearse=rehearse)

    def _made(
        self,
        step: Step,
        name: str,
        calls: Sequence[dict[str, Any]],
        expected_tokens: int,
        expected_rows: int = 0,
        *,
        rehearse: bool,
        gpus: int | None = None,
    ) -> list[Ref]:
        """The artifacts of a step's calls. `gpus`: how many the step itself needs; None for a shard."""
        given = [self._supplied(step, arguments) for arguments in calls]
        jobs = [Job(step.plan(name, each), self.settings, each) for each in given]
        places = [(job.plan.step, job.plan.key) for job in jobs]
        left = [job for job, place in zip(jobs, places, strict=True) if place not in self.done]
        if self.dry:
            refs = [self._foreseen(step, job, expected_tokens // len(jobs), expected_rows, rehearse) for job in left]
        else:
            refs = self._submitted(step, name, left, expected_tokens, gpus) if left else []
        self.done.update(((job.plan.step, job.plan.key), ref) for job, ref in zip(left, refs, strict=True))
        return [self.done[place] for place in places]

    def _foreseen(self, step: Step, job: Job, expected_tokens: int, expected_rows: int, rehearse: bool) -> Ref:
        """What a dry run knows of a call: its artifact, rehearsed if that is possible."""
        plan = job.plan
        if not rehearse or any((ref.step, ref.key) not in self.rehearsed for ref in plan.provenance.inputs.values()):
            return self._looked_up(plan, expected_tokens, expected_rows)
        made: Ref = step.task.fn(Job(plan, self.scratch, job.arguments))
        self.rehearsed.add((plan.step, plan.key))
        self._looked_up(plan, expected_tokens, made.rows)
        return made

    def found(self, step: Step, name: str, **arguments: Any) -> Ref | None:
        """The artifact of a call, if it exists already."""
        plan = step.plan(name, self._supplied(step, arguments))
        return find(self.store, plan.step, plan.key)

    def _made_by(self, plan: Plan) -> list[PrefectFuture[Any]]:
        """The task runs of this run that made or found the inputs of a plan, each once."""
        places = dict.fromkeys((ref.step, ref.key) for ref in plan.provenance.inputs.values())
        return [self.task_runs[place] for place in places if place in self.task_runs]

    def _supplied(self, step: Step, arguments: dict[str, Any]) -> dict[str, Any]:
        return {**arguments, SERVERS: self.servers} if step.takes_servers else arguments

    def _submitted(
        self, step: Step, name: str, jobs: Sequence[Job], expected_tokens: int, gpus: int | None = None
    ) -> list[Ref]:
        """Run the jobs as task runs, each after the task runs that made or found its inputs, and wait for all.

        `gpus`: how many the step itself needs; None for a shard.
        """
        began = time.perf_counter()
        if expected_tokens:
            self.log.info("%s: %s", name, self._expected(name, expected_tokens, jobs[0].arguments))
        futures = self._futures(step, name, jobs, gpus)
        wait(futures)
        self.task_runs.update(((job.plan.step, job.plan.key), each) for job, each in zip(jobs, futures, strict=True))
        cached = all(future.state.name == "Cached" for future in futures)
        refs: list[Ref] = [future.result() for future in futures]
        record = StepRecord(
            name=name,
            key=jobs[0].plan.key,
            seconds=time.perf_counter() - began,
            cached=cached,
            rows=sum(ref.rows for ref in refs),
        )
        self.steps.append(record)
        done = "cached" if cached else "done"
        self.log.info("%-28s %6.1f s  %-6s  %s  %d rows", record.name, record.seconds, done, record.key, record.rows)
        return refs

    def _futures(self, step: Step, name: str, jobs: Sequence[Job], gpus: int | None) -> list[PrefectFuture[Any]]:
        """The jobs' task runs: on this machine, or on the cluster if they are shards or need devices of their own."""
        calls = [(job, self._made_by(job.plan)) for job in jobs]
        trains, first = is_training(name), jobs[0].plan
        if self.cluster is not None and gpus is None:
            return self.cluster.submit_shards(step.task, calls)
        if self.cluster is None or not (gpus or trains) or find(self.store, first.step, first.key):
            return [job.submit(step.task, made_by, to_its_end=step.one_by_one) for job, made_by in calls]
        (self.servers.release if trains else self.servers.scorer)()  # the devices that it is placed on may be theirs
        if trains:
            return [self.cluster.train(step.task, *calls[0])]
        return [self.cluster.submit_alone(step.task, *calls[0], gpus or 0)]

    def _expected(self, name: str, tokens: int, arguments: Mapping[str, Any]) -> str:
        """What to expect of a step that starts now: tokens, and when it ends at the speeds in `estimates`."""
        if is_training(name):
            config, nodes = arguments["config"], self.nodes
            devices = nodes * ranks_of(config, nodes=nodes)
        else:
            devices = self.servers.devices()
        hours = tokens / self._speed(name) / 3600
        ends = datetime.now().astimezone() + timedelta(hours=hours if runs_on_cpu() else hours / devices)
        return f"{expected_cost(tokens, hours)} expected, until about {ends:%H:%M}, less what is cached"

    def _speed(self, name: str) -> float:
        """Expected tokens per second and device of the step `name`."""
        return self.estimates.trained_per_gpu_second if is_training(name) else self.estimates.generated_per_gpu_second

    def first_row(self, table: Ref) -> dict[str, Any] | None:
        """The first row of a table, for a dry run to show; None if the table does not exist."""
        return next(self.rows(table), None)

    def rows(self, table: Ref, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a table, also of one that a dry run has rehearsed; none if it does not exist yet."""
        if not table.digest.startswith(PENDING):
            rehearsed = (table.step, table.key) in self.rehearsed
            yield from read_rows(Store.open(self.scratch) if rehearsed else self.store, table, columns)

    def model(
        self,
        named: str,
        role: Role = "policy",
        trains: Mapping[str, Recipe] | None = None,
        formats: Collection[Format] = (),
        on_server: bool = False,
    ) -> Ref:
        """The model that a user names: a folder, an artifact or a hub id. A dry run copies and downloads nothing.

        Its files are checked first (`infra.serving.model_checks`), in a dry run too, unless it is still on the hub.

        Args:
            role: as what it is served.
            trains: how it is trained, by the name of the parameter; none if it is not.
            formats: those that it, or what it is trained to, answers in; none if it only judges.
            on_server: whether a reward model must be one that vLLM serves.

        Raises:
            BadInput: there is no such model, or it cannot be used so.
        """
        for setting, recipe in (trains or {}).items():
            check_trackers(recipe.report_to, f"{setting}.report_to")
        if named and Path(named).is_dir():
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", Path(named).name, re.ASCII):
                raise BadInput(f"model {named!r}: rename the folder: expected letters, digits, '.', '_' and '-' only")
            self._check(ModelFiles.in_folder(Path(named)), role, trains, formats, on_server)
            take = imported_ref if self.dry else import_model
            taken = take(self.store, Path(named), Path(named).name)
            self.folders[taken.digest] = Path(named)
            return taken
        if found := self._artifact(named):
            if found.kind != "model":
                raise BadInput(f"model {named!r}: that artifact is a {found.kind}, expected a model")
            self._check(ModelFiles.of(self.store, found), role, trains, formats, on_server)
            return found
        name, _, revision = named.partition("@")
        if revision and name.count("/") == 1:
            if self.dry:
                print(f"model {named}: its files are checked when it is downloaded")
                config = cached_config(name, revision) if trains else None
                if trains and config and (sizes := llama_sizes(language_part(config))):
                    self._fit(f"model {named}", config, trains, sizes)
                return self._stand_in("model", "imported", name.replace("/", "--"))
            folder = downloaded(name, revision)
            self._check(ModelFiles.in_folder(folder), role, trains, formats, on_server)
            return import_model(self.store, folder, name)
        raise BadInput(
            f"model {named!r}: no such folder, no artifact STEP/KEY of that name in {self.store.root}, "
            "and no hub id ORG/NAME@REVISION (a revision is required)"
        )

    def _check(
        self,
        files: ModelFiles,
        role: Role,
        trains: Mapping[str, Recipe] | None,
        formats: Collection[Format],
        on_server: bool,
    ) -> None:
        """Refuse a model that cannot be served or trained as wanted. Raises `BadInput`."""
        check = check_reward_model if role == "reward" else check_policy  # a generative reward model is a chat model
        check(files, self.servers.options(role), "serving.policy" if role == "policy" else "serving.reward")
        if on_server and role == "reward":
            check_served(files)
        if formats:
            with files.without_weights() as folder:
                prefix = generation_prefix(loaded_tokenizer(files, folder))
            for each in formats:
                check_prefix(prefix, each, files.title)
        for setting, recipe in (trains or {}).items():
            if dropped := check_trained(files, recipe, setting):
                shown = ", ".join(dropped)
                self.log.warning(
                    "%s: settings without effect, which its trained copy will not have: %s", files.title, shown
                )
        if trains:
            self._fit(files.title, files.read(CONFIG), trains, sizes_of(files))

    def _fit(self, title: str, config: Mapping[str, Any], trains: Mapping[str, Recipe], sizes: Sizes) -> None:
        """Say what the trainings use and need. Raises `BadInput` if one cannot run so."""
        on = device(self.estimates.gpu_memory_gib, dry=self.dry, elsewhere=self.elsewhere, cluster=self.cluster)
        share, reward = self.estimates.memory_share, self.servers.options("reward").gpu_memory_utilization
        for line in check_trainings(title, config, sizes, trains, on, self.nodes, share, reward):
            (print if self.dry else self.log.info)(line)

    def table(self, named: str) -> Ref:
        """The artifact STEP/KEY of another run. Raises `BadInput` if it does not exist."""
        found = self._artifact(named)
        if found is None or found.kind != "table":
            raise BadInput(f"artifact {named!r}: expected STEP/KEY of a whole artifact in {self.store.root}")
        return found

    def _artifact(self, named: str) -> Ref | None:
        """The artifact STEP/KEY; None if `named` is not such a name, or there is no whole artifact."""
        step, _, key = named.partition("/")
        return find(self.store, step, key) if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", named) else None

    def _looked_up(self, plan: Plan, expected_tokens: int, expected_rows: int) -> Ref:
        """The artifact if it exists, else a stand-in. Prints the step's line of the plan."""
        known = not any(ref.digest.startswith(PENDING) for ref in plan.provenance.inputs.values())
        found = find(self.store, plan.step, plan.key) if known else None
        hours = 0.0 if found else expected_tokens / self._speed(plan.step) / 3600
        owed = 0 if found else expected_tokens
        self.tokens, self.hours = self.tokens + owed, self.hours + hours
        expected = expected_cost(owed, hours) if owed else ""
        key = plan.key if known else "(key depends on the above)"
        print(f"{plan.step:28} {'cached' if found else 'to do':8} {key:28} {expected}")
        return found or self._stand_in("table", plan.step, plan.key, expected_rows)

    def _stand_in(self, kind: Literal["table", "model"], step: str, key: str, rows: int = 0) -> Ref:
        """A reference to what does not exist yet: no cache key that is made from it can match."""
        return Ref(kind=kind, step=step, key=key, uri=self.store.uri(step, key), digest=f"{PENDING}:{key}", rows=rows)


@contextmanager
def begin(common: Common) -> Iterator[Run]:
    """Open the store, with a write-read check, and end every server when the run ends.

    On SIGTERM, Ctrl-C or cancellation the trainers are ended as well, since Prefect waits for the steps in progress.
    """
    show_own_logs()
    settings = Settings.load().absolute() if common.cluster else Settings.load()
    store = Store.open(settings)
    with (
        TemporaryDirectory(prefix="bolt-dry-run-") as scratch,
        serving(common, settings, store) as (servers, cluster),
    ):
        hosts = common.training if isinstance(common, Trains) else HERE
        made = Path(scratch) if common.dry_run else None
        ray = common.ray if common.cluster else None
        run = Run(store, settings, servers, common.estimates, made, hosts, cluster, ray)
        if not run.dry:
            check_hosts(hosts, servers.work_dir)
        try:
            yield run
        except (KeyboardInterrupt, TerminationSignal):
            end_all()
            raise
        if run.dry:
            here = (
                f", {run.hours:.2f} hours at the speeds in `estimates`" if runs_on_cpu() and run.hours >= 0.005 else ""
            )
            print(f"{'in all':28} {'':8} {'':28} {expected_cost(run.tokens, run.hours)}{here}")


def is_training(name: str) -> bool:
    """Whether the step of this name trains a model."""
    return name.startswith(("sft", *METHODS))


def expected_cost(tokens: int, hours: float) -> str:
    """What a plan says of tokens, and of hours at the speeds in `estimates`: GPU hours, where there is a GPU."""
    if not tokens:
        return "no tokens"
    if runs_on_cpu():
        return f"{tokens:,} tokens"
    return f"{tokens:,} tokens, " + (f"{hours:.2f} GPU hours" if hours >= 0.005 else "under 0.01 GPU hours")
