#!/usr/bin/env bash
# Sign images with the C2PA project's own library, and check that their content credentials survive, offline:
#   bash tests/c2pa/set-up.sh PYTHON      PYTHON: of a virtual environment with the project's [dev] extra
# Installs the library in a separate environment; this package is imported from the checkout and needs no Airflow there.
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
"$python" -m uv venv --quiet --python "$python" "$work/venv"
"$python" -m uv pip install --quiet --python "$work/venv/bin/python" -r tests/c2pa/requirements.txt
"$work/venv/bin/python" -m pytest --noconftest --basetemp="$work/tmp" tests/c2pa/check_c2pa.py
