#!/usr/bin/env bash
# Writes a configuration and certificates for a Hearth as tests and measurements want it, starts it, waits until it
# answers, and prints its PID.
#
#   hearth-up.sh DIR CLIENT_PORT FEDERATION_PORT SERVER_NAME
#
# A DIR that was set up before is started again with its data; where its server runs already, that is all.
# DIR/data-dir holds the path of the data, DIR/pids the PID again, DIR/hearth.log what the server said.
# Stop with hearth-down.sh DIR.
#
# Durability, password cost and caches stay at their defaults. Servers that shall federate share one CA: give both the
# same HSB_CA_DIR. A SERVER_NAME of localhost:FEDERATION_PORT is found without DNS or .well-known.
#
# Environment:
#   HEARTH      the binary (default: target/release/hearth of this repository)
#   HSB_CA_DIR  directory of the common CA (default: DIR/../ca), made if it is not there
#   LOG_LEVEL   default: warn
set -euo pipefail

if [ $# -ne 4 ]; then
    sed -n '2,18p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 64
fi
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
hearth=$(realpath "${HEARTH:-$repository/target/release/hearth}")
mkdir -p "$1"
dir=$(cd "$1" && pwd)
client_port=$2
federation_port=$3
server_name=$4

# A PID that another process has by now, or one that waits to be reaped, is no running server.
if [ -e "$dir/pids" ] && tr '\0' '\n' 2>/dev/null <"/proc/$(head -n 1 "$dir/pids")/cmdline" | grep -qxF "$dir/hearth.toml"; then
    paste -sd, "$dir/pids"
    exit 0
fi
if [ ! -x "$hearth" ]; then
    echo "hearth-up: $hearth is not there: build it with cargo build --release, or name another by HEARTH" >&2
    exit 1
fi

# --- certificates: one CA, one certificate per server, valid on loopback ---------------------------------------------
ca=${HSB_CA_DIR:-$(dirname "$dir")/ca}
mkdir -p "$ca"
ca=$(cd "$ca" && pwd)
"$(dirname "${BASH_SOURCE[0]}")/certificate.sh" "$ca" "$dir" "$server_name"

# --- configuration ---------------------------------------------------------------------------------------------------
echo "$dir/data" >"$dir/data-dir"
cat >"$dir/hearth.toml" <<TOML
server_name = "$server_name"
data_dir = "$dir/data"
bind = ["127.0.0.1:$client_port"]
presence = true
extra_root_certificates = ["$ca/ca.pem"]
allow_private_addresses = true

[federation]
bind = ["127.0.0.1:$federation_port"]
certificate = "$dir/tls.pem"
key = "$dir/tls.key"
retry_first = "200ms"
retry_longest = "2s"

[registration]
open = true

[directory]
publishers = "everyone"
over_federation = true

[rate_limits]
enabled = false

[log]
level = "${LOG_LEVEL:-warn}"
TOML

# --- start -----------------------------------------------------------------------------------------------------------
cd "$dir"
setsid "$hearth" --config "$dir/hearth.toml" serve >>"$dir/hearth.log" 2>&1 </dev/null &
pid=$!
for _ in $(seq 1 1200); do
    if ! kill -0 "$pid" 2>/dev/null; then
        echo "hearth-up: the server ended; the end of $dir/hearth.log:" >&2
        tail -n 5 "$dir/hearth.log" >&2
        exit 1
    fi
    # /versions answers at once; /health only says "ok" when the store is open.
    if curl -fsS --noproxy "*" -o /dev/null "http://127.0.0.1:$client_port/health" 2>/dev/null; then
        echo "$pid" | tee "$dir/pids"
        exit 0
    fi
    sleep 0.1
done
echo "hearth-up: no answer on port $client_port within two minutes" >&2
kill "$pid"
exit 1
