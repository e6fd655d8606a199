#!/usr/bin/env bash
# Sets up .venv on a machine that has python3 (3.11 or newer, with venv) or uv, then:
#   bash launch.sh               the error study on the embedded digits, with its report in runs/digits
#   bash launch.sh test          format, lint, types and the whole test suite
#   bash launch.sh test-oldest   the tests that meet most of JAX and Flax, with the oldest versions allowed
#   bash launch.sh set-up        the environment of the tests alone, .venv; set-up-oldest: .venv-oldest
#   bash launch.sh CONFIG DIR [--config.field=value ...]   another experiment, e.g. configs/garipov_mnist.py
set -euo pipefail
cd "$(dirname "$0")"

# set_up FOLDER EXTRA [CONSTRAINTS]: a virtual environment with the project and one of its extras.
# Made anew when pyproject.toml or the constraints changed since.
set_up() {
    local venv=$1 extra=$2 constraints=${3:-}
    local stamp="$venv/.installed-$extra"
    if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && { [ -z "$constraints" ] || [ "$stamp" -nt "$constraints" ]; }; then
        return
    fi
    echo "setting up $venv ($extra)"
    if command -v uv >/dev/null; then
        [ -x "$venv/bin/python" ] || uv venv --quiet --python '>=3.11' "$venv"
        uv pip install --quiet --python "$venv/bin/python" ${constraints:+--constraint "$constraints"} -e ".[$extra]"
    else
        [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
        # What is imported is compiled then; to compile all of every package takes longer than the rest.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
            ${constraints:+--constraint "$constraints"} -e ".[$extra]"
    fi
    touch "$stamp"
}

run_tests() {
    # What one process compiles as it imports, the others read, whatever the caller's shell says.
    unset PYTHONDONTWRITEBYTECODE
    # Two workers: compiling, which most tests wait for, keeps one core busy. Neighbouring tests stay
    # with one of them, which then has their fixtures and programs.
    "$1/bin/python" -m pytest -n 2 --dist worksteal "${@:2}"
}

case "${1:-}" in
    test)
        set_up .venv test,quantize
        .venv/bin/ruff format --check .
        .venv/bin/ruff check .
        # Types beside the tests, which leave the second core idle now and then.
        .venv/bin/mypy &
        run_tests .venv
        wait $!
        ;;
    set-up)
        set_up .venv test,quantize
        ;;
    set-up-oldest)
        set_up .venv-oldest test .ci/oldest.txt
        ;;
    test-oldest)
        set_up .venv-oldest test .ci/oldest.txt
        run_tests .venv-oldest -m oldest
        ;;
    "")
        set_up .venv experiments
        # In place of this shell, so that signals reach it.
        exec .venv/bin/python -m experiments.main --config=configs/digits.py --workdir=runs/digits
        ;;
    *)
        [ $# -ge 2 ] || { sed -n '2,7p' "$0"; exit 2; }
        set_up .venv experiments
        exec .venv/bin/python -m experiments.main --config="$1" --workdir="$2" "${@:3}"
        ;;
esac
