#!/bin/bash
# Collects what a GPU machine without a network lacks, for bench/gpu_training.sh: bench/gpu_wheels.sh [WITHOUT ...]
# The machine has Python 3.12, torch and transformers. TRL, DeepSpeed and what they need come along as wheels, in the
# versions that are pinned here, without tests, headers, and Arrow's network services. Packages named as arguments are
# left out, because the machine has them: pyarrow and pandas are most of the size. Needs a network and `make setup`,
# since DeepSpeed's wheel is built with torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${FOLDER:-build/gpu_wheels}
limit_mib=64
python=.venv/bin/python
packages=(trl deepspeed accelerate datasets liger-kernel pyarrow pandas python-dateutil six dill multiprocess xxhash
    psutil jinja2 markupsafe einops hjson msgpack ninja py-cpuinfo fsspec pydantic pydantic-core pydantic-settings
    python-dotenv annotated-types typing-inspection typing-extensions tenacity)

# The highest glibc first: the machine's must be at least as new as that of the wheels that pip chooses.
platforms=()
for minor in 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
target=(--python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none --only-binary :all: "${platforms[@]}")

rm -rf "$folder"
mkdir -p "$folder"
pins=$(tr -d ' "' <constraints.txt; tr ',[]' '\n' <pyproject.toml | tr -d ' "') # a GPU's own are in pyproject.toml alone
for package in "${packages[@]}"; do
    for left_out in "$@"; do [ "$left_out" != "$package" ] || continue 2; done
    pin=$(grep -iE -m 1 "^${package//-/[-_]}==" <<<"$pins") ||
        { echo "gpu_wheels: neither constraints.txt nor pyproject.toml pins $package" >&2 && exit 1; }
    if [ "$package" = deepspeed ]; then # there is only its source; without compiled operations the wheel fits any Python 3
        DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder" "$pin"
    else
        "$python" -m pip download --quiet --no-deps "${target[@]}" --dest "$folder" "$pin"
    fi
done

"$python" - "$folder" <<'PYTHON'
import re, sys, zipfile
from pathlib import Path

UNUSED = re.compile(r"pandas/tests/|pyarrow/(tests|include|src)/|pyarrow/\w*flight\w*[.]")
for wheel in Path(sys.argv[1]).glob("p*.whl"):
    smaller = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as given, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as made:
        for member in given.infolist():
            data = given.read(member)
            if member.filename.endswith(".dist-info/RECORD"):
                data = b"".join(line for line in data.splitlines(True) if not UNUSED.match(line.decode()))
            if not UNUSED.match(member.filename):
                made.writestr(member, data)
    smaller.replace(wheel)
PYTHON

mib=$(find "$folder" -type f -printf '%s\n' | awk '{bytes += $1} END {print int(bytes / 2 ^ 20) + 1}')
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $mib MiB"
if [ "$mib" -gt "$limit_mib" ]; then
    echo "gpu_wheels: more than $limit_mib MiB; leave out what the machine has: bench/gpu_wheels.sh pyarrow pandas" >&2
    exit 1
fi
