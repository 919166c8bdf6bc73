#!/usr/bin/env bash
# Run two attempts of one task at once, and stop others midway:  bash tests/overlaps/set-up.sh PYTHON
#
# PYTHON belongs to a virtual environment with this project and its [dev] extra; its Airflow keeps journals in the task
# state store. Airflow 3.2, which keeps them in a folder, is installed in a separate environment. Everything is in a
# temporary folder and on free loopback ports, and nothing needs root. Each process runs in its own session, whose
# number is recorded in that folder; at the end, also after a failure, all processes of these sessions are killed.
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

"$python" -m uv venv --quiet --python "$python" "$work/venv"
older="$work/venv/bin/python"
# With the dependencies of its release date: it does not run with later ones.
"$python" -m uv pip install --quiet --compile-bytecode --python "$older" --exclude-newer 2026-06-15 \
  apache-airflow==3.2.2 'requests>=2.32.2' 'urllib3>=2.6' 'Pillow>=11.3'
"$python" -m uv pip install --quiet --python "$older" --no-deps --editable .

# check INTERPRETER FOLDER CHECKS: uses its own Airflow home, so that two can run in parallel
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
