#!/usr/bin/env bash
# Run two attempts of one task at once, and stop others in the middle:  bash tests/overlaps/set-up.sh PYTHON
#
# PYTHON is that of a virtual environment with this project installed; its Airflow keeps journals in the task state store.
# Airflow 3.2, which keeps them in a folder, is installed beside it. Everything lives in a temporary folder and on free
# ports of loopback, and nothing needs root. Each process that is started gets a session of its own and notes its number
# in the folder; whatever is left of those sessions at the end, also after a failure, is killed.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=$(realpath -s "${1:?usage: set-up.sh PYTHON}")
work=$(mktemp -d)
unset PYTHONPATH AIRFLOW_HOME PYTHONDONTWRITEBYTECODE # with bytecode, Airflow starts three times faster

clean_up() {
  for sessions in "$work"/*/sessions; do
    [ ! -e "$sessions" ] || "$python" tests/support/end_sessions.py "$sessions"
  done
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$python" -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet --disable-pip-version-check uv
"$work/uv/bin/uv" venv --quiet --python "$python" "$work/venv"
older="$work/venv/bin/python"
# As it could be installed on that day: with what was published later beside it, it does not run.
"$work/uv/bin/uv" pip install --quiet --python "$older" --exclude-newer 2026-06-15 \
  apache-airflow==3.2.2 'requests>=2.32.2' 'urllib3>=2.6.3' 'Pillow>=11.3'
"$work/uv/bin/uv" pip install --quiet --python "$older" --no-deps --editable .
"$older" -m compileall -q "$work/venv/lib" >"$work/compileall.log" || true # a package may carry templates that are not Python

# check INTERPRETER FOLDER CHECKS: with a home of its own, so that two can run side by side
check() {
  mkdir "$work/$2"
  touch "$work/$2/sessions"
  IMAGEN_OVERLAPS_HOME="$work/$2" IMAGEN_OVERLAPS_PYTHON="$1" "$python" -m pytest -o timeout=300 "tests/overlaps/$3"
}

version() {
  "$1" -c 'from importlib.metadata import version; print(version("apache-airflow"))'
}

failed=0
check "$python" stops check_stops.py >"$work/stops.log" 2>&1 & # it waits most of the time
stops=$!
for each in "$python" "$older"; do
  echo "--- overlaps, Airflow $(version "$each")"
  check "$each" "overlaps-$(version "$each")" check_overlaps.py || failed=1
done
wait "$stops" || failed=1
echo "--- stops, Airflow $(version "$python")"
cat "$work/stops.log"
exit "$failed"
