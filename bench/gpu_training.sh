#!/bin/bash
# Measures training on one GPU in less than 8 minutes: bench/gpu_training.sh [OPTIONS of bench/gpu_training.py]
# The machine has Python 3.12, torch and transformers; what it lacks is installed from build/gpu_wheels, which
# bench/gpu_wheels.sh makes elsewhere. No network is needed. Where everything is installed (make setup, or an earlier
# call), nothing is: .venv/bin/python, if there is one.
#   PYTHON  the interpreter that has torch; default: .venv/bin/python, else python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
wheels=build/gpu_wheels
env=build/gpu_env
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
unset PIP_TARGET PIP_PREFIX PIP_CONSTRAINT PIP_REQUIRE_HASHES
export PIP_USER=0

complete() {
    "$1" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' \
        torch transformers trl deepspeed accelerate datasets pyarrow pydantic_settings tenacity ${2:+"$2"}
}

if ! complete "$python"; then
    # An environment on top of the machine's, which may itself be one: --system-site-packages would miss its packages.
    if [ ! -x "$env/bin/python" ] || ! complete "$env/bin/python" liger_kernel; then
        "$python" -m venv --clear --without-pip "$env"
        "$python" -c 'import site, sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
            >"$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth"
        "$env/bin/python" -m pip install --quiet --no-index --no-compile --disable-pip-version-check \
            --root-user-action ignore --find-links "$wheels" \
            trl deepspeed accelerate datasets liger-kernel pyarrow pandas pydantic-settings tenacity >&2
    fi
    python=$env/bin/python
fi
exec "$python" bench/gpu_training.py "$@"
