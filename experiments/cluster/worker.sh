#!/usr/bin/env bash
# One process of a run. Start as many as you like, each on its own:
#   bash worker.sh          its number is asked of the environment (SLURM, Open MPI)
#   bash worker.sh K/N      it is process K, from 0, of N
# All of them share the work directory and deal the work out among themselves. Any of them may end
# or be killed, and be started again: it goes on with what is missing.
set -euo pipefail
cd @{clone}
exec .venv/bin/python -m experiments.main \
@{flags}    ${1:+--process="$1"}
