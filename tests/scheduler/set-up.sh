#!/usr/bin/env bash
# Run the checks against a real scheduler, api-server and DAG processor:  bash tests/scheduler/set-up.sh <python>
#
# <python> is that of a virtual environment with this project installed. Nothing is installed and nothing needs root.
# Everything lives in a temporary folder and on free ports of loopback. Each process that is started gets a session of its
# own and notes its number in the folder; whatever is left of those sessions at the end, also after a failure, is killed.
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
