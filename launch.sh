#!/usr/bin/env bash
# Sets up .venv on a machine that has python3 (3.11 or newer, with venv) or uv, then:
#   bash launch.sh               the error study on the embedded digits, with its report in runs/digits
#   bash launch.sh test          format, lint, types and the whole test suite
#   bash launch.sh test-oldest   the tests that meet most of JAX and Flax, with the oldest versions allowed
#   bash launch.sh set-up        the environment of the tests alone, .venv; set-up-oldest: .venv-oldest
#   bash launch.sh CONFIG DIR [--config.field=value ...]   another experiment, e.g. configs/garipov_mnist.py
#   bash launch.sh cluster CONFIG DIR [options] [--config.field=value ...]   the same on many machines: --help
# EXTRAS=images,cuda in the environment adds extras of pyproject.toml to those of experiments.
set -euo pipefail
cd "$(dirname "$0")"

# set_up FOLDER EXTRAS [CONSTRAINTS]: a virtual environment with the project and some of its extras.
# Looked at anew when pyproject.toml or the constraints changed since; where nothing is missing, or
# there already, no installer is asked, and so no network.
set_up() {
    local venv=$1 extras=$2 constraints=${3:-} status=0
    local stamp="$venv/.installed-$extras"
    if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && { [ -z "$constraints" ] || [ "$stamp" -nt "$constraints" ]; }; then
        return
    fi
    if ! "$venv/bin/python" -m experiments.installed "$extras" ${constraints:+"$constraints"} >/dev/null 2>&1; then
        echo "setting up $venv with $extras: 50 to 110 packages, about 1 GB; once, some minutes by network and installer"
        install "$venv" "$extras" ${constraints:+"$constraints"} || status=$?
        if [ "$status" != 0 ]; then
            echo "error: $venv could not be set up, for the reason above" >&2
            echo "without a network uv installs from its cache; pip needs a folder of wheels:" >&2
            echo "PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER, as of: pip download -d FOLDER '.[$extras]' 'setuptools>=77'" >&2
            exit "$status"
        fi
        # An extra that there is not is left out by installers.
        "$venv/bin/python" -m experiments.installed "$extras" ${constraints:+"$constraints"} || exit
        echo "set up after $SECONDS s"
    fi
    touch "$stamp"
}

# Errors of the installers are shown; what else they say, such as pip's warnings, is not.
install() {
    local venv=$1 extras=$2 constraints=${3:-}
    if command -v uv >/dev/null; then
        [ -x "$venv/bin/python" ] || uv venv --quiet --python '>=3.11' "$venv" || return
        local from=(--python "$venv/bin/python" ${constraints:+--constraint "$constraints"} -e ".[$extras]") said
        said=$(uv pip install --quiet "${from[@]}" 2>&1) && return
        # Its cache may have all that no network is there for.
        if uv pip install --quiet --offline "${from[@]}" 2>/dev/null; then
            echo "installed from uv's cache; with the network it failed: ${said##*cause: }"
            return
        fi
        echo "$said" >&2
        return 1
    else
        [ -x "$venv/bin/python" ] || python3 -m venv "$venv" || return
        # What is imported is compiled then; to compile all of every package takes longer than the rest.
        # The warnings of the pip that it starts itself are let through by --quiet.
        "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-compile \
            ${constraints:+--constraint "$constraints"} -e ".[$extras]" 2>&1 |
            { grep -v '^ *WARNING:' || true; } >&2
    fi
}

run_tests() {
    # What one process compiles as it imports, the others read, whatever the caller's shell says.
    unset PYTHONDONTWRITEBYTECODE
    # Two workers: compiling, which most tests wait for, keeps one core busy. Neighbouring tests stay
    # with one of them, which then has their fixtures and programs.
    "$1/bin/python" -m pytest -n 2 --dist worksteal "${@:2}"
}

experiments="experiments${EXTRAS:+,$EXTRAS}"

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
    cluster)
        set_up .venv "$experiments"
        exec .venv/bin/python -m experiments.cluster "${@:2}"
        ;;
    "")
        set_up .venv "$experiments"
        # In place of this shell, so that signals reach it.
        exec .venv/bin/python -m experiments.main --config=configs/digits.py --workdir=runs/digits
        ;;
    *)
        [ $# -ge 2 ] || { sed -n '2,9p' "$0"; exit 2; }
        set_up .venv "$experiments"
        exec .venv/bin/python -m experiments.main --config="$1" --workdir="$2" "${@:3}"
        ;;
esac
