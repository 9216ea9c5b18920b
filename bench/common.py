"""What every measurement needs: its options, the circumstances that it records, and where its result goes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def bench_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a bench's docstring as its help, with the option `--out`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file as well")
    return parser


def model_folder(text: str) -> Path:
    """The value of an option that names a model's folder, which must exist."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no model folder {text}")
    return Path(text)


def report(result: dict[str, Any], out: Path | None) -> None:
    """Print a result as one JSON line, and append it to the file `out`."""
    line = json.dumps(result)
    print(line, flush=True)
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def surroundings() -> dict[str, Any]:
    """Machine, load, interpreter, command and commit (`-dirty` if files differ from it)."""
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory()}{_gpus()}, {platform.system()}",
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "commit": commit.stdout.strip() or "unknown",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")
    return "".join(f", {name.strip()}" for name in names if name.strip())
