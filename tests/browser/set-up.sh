#!/usr/bin/env bash
# A real Airflow (api-server, scheduler, dag-processor), the sandbox and a real Chromium: the connection form, a run, the
# gallery, a review, a choice, the next task. Then the demo's UI, and the README's first DAG in an Airflow of its own.
# Usage: set-up.sh <python of an environment with the project installed>.
# Screenshots stay in the folder $ARTIFACTS names, else in a temporary one that is printed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${1:?usage: set-up.sh <python of an environment with the project installed>}

if ! command -v chromium >/dev/null; then
  { apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; } >/dev/null
fi

work=$(mktemp -d)
clean_up() {
  [ ! -s "$work/sessions" ] || "$python" "$here/../support/end_sessions.py" "$work/sessions"
  rm -rf "$work"
}
trap clean_up EXIT
unset AIRFLOW_HOME
"$python" -m venv "$work/driver" # the browser's driver and Airflow must not share dependencies
"$work/driver/bin/pip" install --quiet --disable-pip-version-check 'playwright>=1.50' 'pytest>=8.3' 'pytest-timeout>=2.3' \
  'psutil>=5.9'

export ARTIFACTS=${ARTIFACTS:-$(mktemp -d -t imagen-screenshots-XXXXXX)}
mkdir -p "$ARTIFACTS"
echo "Screenshots: $ARTIFACTS"
AIRFLOW_PYTHON=$python IMAGEN_WORK=$work "$work/driver/bin/python" -m pytest \
  --confcutdir="$here" --rootdir="$here" -p no:cacheprovider --timeout=330 -rA -q "$here"/check_*.py
