#!/usr/bin/env bash
# Check the connection form, a run, the gallery, a review and the sandbox's page in a real Chromium, against a real
# Airflow (API server, scheduler, DAG processor) and the sandbox; then the demo's UI and the quick start's first DAG, each
# in an Airflow of its own:  bash tests/browser/set-up.sh PYTHON [PYTEST-ARGUMENT...]
#
# PYTHON belongs to a virtual environment with this project and its [dev] extra. Screenshots are saved in $ARTIFACTS, or in a
# temporary folder whose name is printed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${1:?usage: set-up.sh PYTHON [PYTEST-ARGUMENT...]}

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
"$python" -m uv venv --quiet --python "$python" "$work/driver" # Airflow and the browser's driver must not share dependencies
"$python" -m uv pip install --quiet --python "$work/driver/bin/python" \
  'playwright>=1.50' 'pytest>=8.3' 'pytest-timeout>=2.3' 'psutil>=5.9' 'axe-playwright-python>=0.1.7'

export ARTIFACTS=${ARTIFACTS:-$(mktemp -d -t imagen-screenshots-XXXXXX)}
mkdir -p "$ARTIFACTS"
echo "Screenshots: $ARTIFACTS"
AIRFLOW_PYTHON=$python IMAGEN_WORK=$work "$work/driver/bin/python" -m pytest \
  --confcutdir="$here" --rootdir="$here" -p no:cacheprovider --timeout=330 -rA -q "$here"/check_*.py "${@:2}"
