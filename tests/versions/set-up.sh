#!/usr/bin/env bash
# Run the tests on the other supported versions:  bash tests/versions/set-up.sh PYTHON
#
# PYTHON belongs to a virtual environment with this project and its [dev] extra. The newest Airflow runs on each other
# Python from 3.11 to 3.14 of this machine, and Airflow 3.1 and 3.2 run on the oldest of all, with the oldest versions of
# the dependencies that this project allows. Nothing is installed outside a temporary folder, and nothing needs root. At
# the end, a table lists what ran and what did not.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=$(realpath -s "${1:?usage: set-up.sh PYTHON}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH AIRFLOW_HOME PYTHONDONTWRITEBYTECODE

"$python" tests/versions/run_versions.py --work "$work"
