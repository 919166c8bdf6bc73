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
  "$python" - "$home/sessions" <<'PYTHON'
import os, signal, sys
import psutil

sessions = {int(line) for line in open(sys.argv[1])}
for process in psutil.process_iter():
    try:
        if os.getsid(process.pid) in sessions:
            process.send_signal(signal.SIGKILL)
    except (psutil.Error, ProcessLookupError, PermissionError):
        pass
PYTHON
  rm -rf "$home"
}
trap clean_up EXIT

IMAGEN_SCHEDULER_HOME="$home" "$python" -m pytest -o timeout=230 tests/scheduler/check_scheduler.py
