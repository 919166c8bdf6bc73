#!/usr/bin/env bash
# Run DAGs with the real OpenLineage provider, and check the events it emits:
#   bash tests/openlineage/set-up.sh PYTHON      PYTHON: of a virtual environment with the project's [dev] extra
# Uses a separate environment, because the provider would change how other tests run.
set -euo pipefail
python=$(realpath -s "${1:?usage: set-up.sh PYTHON}")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH AIRFLOW_HOME PYTHONDONTWRITEBYTECODE
"$python" -m uv venv --quiet --python "$python" "$work/venv"
"$python" -m uv pip install --quiet --compile-bytecode --python "$work/venv/bin/python" \
  . 'apache-airflow-providers-openlineage>=2.10' 'pytest>=8.3' 'pytest-timeout>=2.3'
IMAGEN_EVENTS="$work/events.jsonl" "$work/venv/bin/python" -m pytest --basetemp="$work/tmp" \
  tests/openlineage/check_openlineage.py
