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
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  . 'apache-airflow-providers-common-ai[openai]>=1.0' 'pytest>=8.3' 'pytest-timeout>=2.3'
"$work/venv/bin/python" -m compileall -q "$work/venv/lib" || true # a package may carry templates that are not Python
"$work/venv/bin/python" -m pytest --basetemp="$work/tmp" tests/common_ai/check_quality_gate.py
