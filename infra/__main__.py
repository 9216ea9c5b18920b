"""Inspect and clean up the artifact store: `python -m infra list | verify | trace STEP/KEY | prune`.

The store is that of the settings (`BOLT_STORE`, ...), as for the flows. `python -m infra kubernetes` needs no store: it
prints the manifests of an installation on Kubernetes.
"""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.operations.cluster import Installation
from infra.operations.inventory import artifacts, files_of, problems, remove, unneeded
from infra.operations.kubernetes import rendered
from infra.proxies import spare_loopback
from infra.settings import Settings
from infra.store.lineage import history, lineage, lineage_picture
from infra.store.store import Store, StoreError

MOST_DAYS = 36_500


def show(store: Store, step: str | None) -> None:
    """Print one line per artifact: name, rows or files, bytes, time, digest."""
    for found in artifacts(store):
        if step and not found.folder.startswith(f"{step.rstrip('/')}/"):
            continue
        if found.manifest is None:
            print(f"{found.folder:60} {found.problem}")
        else:
            each = found.manifest
            unit = "rows" if each.kind == "table" else "files"
            print(
                f"{each.folder:60} {each.rows:>10,} {unit:5} {each.bytes:>14,} bytes  "
                f"{each.ended:%Y-%m-%d %H:%M}  {each.digest[:12]}"
            )


def verify(store: Store, folder: str | None) -> int:
    """Read every part and check its sha256. Returns the exit status: 1 if anything is wrong."""
    checked = wrong = 0
    for found in artifacts(store):
        if folder and found.folder != folder:
            continue
        checked += 1
        lines = problems(store, found)
        wrong += bool(lines)
        for line in lines:
            print(line)
    if folder and not checked:
        raise ValueError(f"no artifact {folder} in {store.root}")
    print(f"{checked} artifacts read, {wrong} not whole")
    return 1 if wrong else 0


def trace(store: Store, folder: str, row: int | None, picture: Path | None) -> None:
    """Print what an artifact, or one row of a table, was made from."""
    if not re.fullmatch(r"[^/]+/[^/]+", folder):
        raise ValueError(f"{folder}: expected an artifact STEP/KEY, as `python -m infra list` shows it")
    step, _, key = folder.partition("/")
    print(lineage(store, (step, key)))
    if row is not None:
        print()
        for line in history(store, step, key, row):
            print(line)
    if picture:
        picture.write_bytes(lineage_picture(store, (step, key)))
        print(f"\n{picture}")


def prune(store: Store, kept: list[str], days: float | None, really: bool) -> None:
    """Delete what no kept artifact needs; without `really`, only print what would be deleted."""
    if not kept and days is None:
        raise ValueError("nothing to keep: give --keep STEP/KEY (any number of times), --days N, or both")
    since = datetime.now(UTC) - timedelta(days=days) if days is not None else None
    going = unneeded(store, kept, since)
    for found in going:
        files = remove(store, found) if really else len(files_of(store, found))
        print(f"{'deleted' if really else 'would delete'} {found.folder}  {files} files")
    print(f"{len(going)} artifacts" + ("" if really else "; nothing was deleted: add --yes to delete"))


def age(text: str) -> float:
    """A number of days for the command line: a negative one would count nothing as young, so that all is deleted."""
    if not 0 <= (days := float(text)) <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of days from 0 to {MOST_DAYS}")
    return days


def _add_kubernetes(parser: argparse.ArgumentParser) -> None:
    defaults = Installation._field_defaults
    texts = {
        "namespace": "namespace of everything",
        "store": "artifact store: s3://BUCKET/PREFIX, or a folder of the volume that all pods mount",
        "gpus": "GPUs of a run in bolt-gpu, of each agent and of each Ray worker; 0 for images with FLAVOUR=cpu",
        "memory": "memory of a run in bolt-gpu, of each agent and of each Ray worker",
        "machines": "machines of a training: the run's own, and an agent for each other one",
        "ray_workers": "workers of a Ray cluster (KubeRay) with the pool bolt-ray; 0: no Ray cluster",
        "storage": "size of the volume that all pods mount",
        "storage_class": "its storage class, which must allow ReadWriteMany; if omitted, the cluster's default",
    }
    parser.add_argument("--image", required=True, help="the runs' image, built from infra/containers/Dockerfile")
    parser.add_argument("--worker-image", required=True, help="built from infra/containers/Dockerfile.worker")
    for name, text in texts.items():
        default = defaults[name]
        shown = text if default is None else f"{text} (default: {default})"
        kind = str if default is None else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=shown)
    parser.add_argument(
        "--node-selector",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="label of the nodes for runs in bolt-gpu, agents and Ray workers; may be given several times",
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra", description="Look after the artifact store and the cluster."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="one line per artifact")
    listing.add_argument("step", nargs="?", help="only the artifacts of this step")
    verifying = commands.add_parser("verify", help="read every part and check its sha256; status 1 if any is wrong")
    verifying.add_argument("artifact", nargs="?", metavar="STEP/KEY")
    tracing = commands.add_parser("trace", help="what an artifact, or a row of it, was made from")
    tracing.add_argument("artifact", metavar="STEP/KEY")
    tracing.add_argument("--row", type=int, help="a row of the table, counted from 0")
    tracing.add_argument("--picture", type=Path, metavar="FILE.svg", help="the lineage as a graph")
    pruning = commands.add_parser("prune", help="delete what no kept artifact needs (dry run unless --yes)")
    pruning.add_argument("--keep", action="append", default=[], metavar="STEP/KEY")
    pruning.add_argument("--days", type=age, help="keep the artifacts of the last DAYS days")
    pruning.add_argument("--yes", action="store_true", help="delete; without it, only list")
    _add_kubernetes(commands.add_parser("kubernetes", help="print the manifests of an installation on Kubernetes"))
    given = parser.parse_args(argv)
    try:
        if given.command == "kubernetes":
            options = {name: getattr(given, name) for name in Installation._fields}
            print(rendered(Installation(**options | {"node_selector": tuple(given.node_selector)})), end="")
            return 0
        spare_loopback()
        store = Store.open(Settings.load())
        if given.command == "verify":
            return verify(store, given.artifact)
        if given.command == "list":
            show(store, given.step)
        elif given.command == "trace":
            trace(store, given.artifact, given.row, given.picture)
        else:
            prune(store, given.keep, given.days, given.yes)
    except (StoreError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a locale may lack the characters
    sys.exit(main(sys.argv[1:]))
