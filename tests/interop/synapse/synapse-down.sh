#!/usr/bin/env bash
# Stops what synapse-up.sh started in DIR; the data stays.
#
#   synapse-down.sh DIR
set -euo pipefail
dir=$(cd "${1:?usage: synapse-down.sh DIR}" && pwd)
[ -e "$dir/pids" ] || exit 0
pid=$(head -n 1 "$dir/pids")
runs() { # also false for a process that only waits to be reaped
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF "$dir/homeserver.yaml"
}
if runs; then kill -s TERM "$pid"; fi
for _ in $(seq 1 600); do
    if ! runs; then
        rm -f "$dir/pids"
        exit 0
    fi
    sleep 0.05
done
echo "synapse-down: process $pid still runs" >&2
exit 1
