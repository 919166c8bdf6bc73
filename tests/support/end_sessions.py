"""Kill the remaining processes of sessions listed in a file, one number per line:  python end_sessions.py FILE"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

sessions = {int(line) for line in Path(sys.argv[1]).read_text().split()}
for process in psutil.process_iter():
    with suppress(psutil.Error, ProcessLookupError, PermissionError):
        if os.getsid(process.pid) in sessions:
            process.send_signal(signal.SIGKILL)
