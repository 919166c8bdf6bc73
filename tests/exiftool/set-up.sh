#!/usr/bin/env bash
# Check with exiftool that embedded metadata can be read and that the files are valid:
#   bash tests/exiftool/set-up.sh PYTHON      PYTHON: of a virtual environment with the project and pytest
# Installs exiftool with apt if it is missing.
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/../.."
if ! command -v exiftool >/dev/null; then
  root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  "${root[@]}" apt-get update -qq
  "${root[@]}" apt-get install -y -qq --no-install-recommends libimage-exiftool-perl >/dev/null
fi
"$python" -m pytest tests/exiftool/check_exiftool.py
