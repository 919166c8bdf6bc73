#!/usr/bin/env bash
# Have exiftool read what is written into pictures, and judge the files.
#   bash tests/exiftool/set-up.sh PYTHON      PYTHON: of a virtual environment that has the project and pytest
# Installs exiftool by apt when it is missing.
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
