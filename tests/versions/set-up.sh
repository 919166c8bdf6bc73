#!/usr/bin/env bash
# Run what meets Airflow on every minor version but the newest, which the default tests run on.
#   bash tests/versions/set-up.sh PYTHON      PYTHON: of a virtual environment that has the project
# Each version goes into an environment of its own, as it could be installed at its time: with what was published later
# beside it, it does not run. Nothing else is installed and nothing needs root.
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH AIRFLOW_HOME

"$python" -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet --disable-pip-version-check uv
uv="$work/uv/bin/uv"

run_on() { # version, day it is installed as of
  local venv="$work/$1" started=$SECONDS
  "$uv" venv --quiet --python "$python" "$venv"
  "$uv" pip install --quiet --python "$venv/bin/python" --exclude-newer "$2" "apache-airflow==$1" \
    'requests>=2.32.2' 'urllib3>=2.2' 'Pillow>=11.3' 'pytest>=8.3' 'pytest-timeout>=2.3' 'hypothesis>=6.130'
  "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --editable .
  "$venv/bin/python" -m compileall -q "$venv/lib" || true # a package may carry templates that are not Python
  printf '\n--- Airflow %s, %s\n' "$1" "$("$venv/bin/python" --version)"
  "$venv/bin/python" -m pytest -q --basetemp="$work/tmp-$1" \
    tests/operators tests/decorators tests/hooks tests/test_example_dags.py || failed=1
  printf -- '--- Airflow %s: %s s, installation included\n' "$1" "$((SECONDS - started))"
}

failed=0
run_on 3.1.8 2026-03-20
run_on 3.2.2 2026-06-15
exit "$failed"
