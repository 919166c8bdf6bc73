#!/usr/bin/env bash
# Open output folders as Hugging Face datasets with the real library, offline:
#   bash tests/huggingface/set-up.sh PYTHON      PYTHON: of a virtual environment with the project's [dev] extra
# Installs the library in a separate environment; this package is imported from the checkout and needs no Airflow there.
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
"$python" -m uv venv --quiet --python "$python" "$work/venv"
"$python" -m uv pip install --quiet --python "$work/venv/bin/python" -r tests/huggingface/requirements.txt
HF_HUB_OFFLINE=1 HF_HOME="$work/home" "$work/venv/bin/python" -m pytest --noconftest --basetemp="$work/tmp" \
  tests/huggingface/check_imagefolder.py
