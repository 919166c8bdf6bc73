#!/usr/bin/env bash
# Run the checks against a real scheduler, API server and DAG processor:  bash tests/scheduler/set-up.sh PYTHON
#
# PYTHON belongs to a virtual environment with this project installed. Nothing is installed and nothing needs root.
# Everything is in a temporary folder and on free loopback ports. Each process runs in its own session, whose number is
# recorded in that folder; at the end, also after a failure, all processes of these sessions are killed.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${1:?usage: set-up.sh <python>}
home=$(mktemp -d)
touch "$home/sessions"

clean_up() {
  "$python" tests/support/end_sessions.py "$home/sessions"
  rm -rf "$home"
}
trap clean_up EXIT

IMAGEN_SCHEDULER_HOME="$home" "$python" -m pytest -o timeout=230 tests/scheduler/check_scheduler.py
