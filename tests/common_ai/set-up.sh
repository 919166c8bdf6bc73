#!/usr/bin/env bash
# Run the example of a vision quality gate with Airflow's real common-ai provider, and a vision model on loopback:
#   bash tests/common_ai/set-up.sh PYTHON      PYTHON: any Python 3.11 or later
# Uses a separate environment, because the provider's plugins would change how other tests run.
set -euo pipefail
python=$(realpath -s "${1:?usage: set-up.sh PYTHON}")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH AIRFLOW_HOME PYTHONDONTWRITEBYTECODE
"$python" -m uv venv --quiet --python "$python" "$work/venv"
"$python" -m uv pip install --quiet --compile-bytecode --python "$work/venv/bin/python" \
  . 'apache-airflow-providers-common-ai[openai]>=1.0' 'pytest>=8.3' 'pytest-timeout>=2.3'
"$work/venv/bin/python" -m pytest --basetemp="$work/tmp" tests/common_ai/check_quality_gate.py
