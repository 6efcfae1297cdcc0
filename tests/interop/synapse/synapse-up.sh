#!/usr/bin/env bash
# What hearth-up.sh does, for a Synapse: configuration and certificates, start, wait, print the PID.
#
#   synapse-up.sh DIR CLIENT_PORT FEDERATION_PORT SERVER_NAME
#
# Certificates of peers are verified against the CA that both servers share. Rate limits are off, destinations that
# failed are tried again soon, nobody else's word on keys is taken. DIR/synapse.log is what the server said.
#
# Environment:
#   SYNAPSE_PYTHON  Python with Synapse (default: target/interop/synapse/bin/python, as run.sh installs it)
#   HSB_CA_DIR      directory of the common CA (default: DIR/../ca)
#   LOG_LEVEL       default: INFO
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${SYNAPSE_PYTHON:-$here/../../../target/interop/synapse/bin/python}
# Not resolved further: a virtual environment's Python is a link.
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
mkdir -p "$1"
dir=$(cd "$1" && pwd)
client_port=$2 federation_port=$3 server_name=$4
mkdir -p "${HSB_CA_DIR:-$dir/../ca}"
ca=$(cd "${HSB_CA_DIR:-$dir/../ca}" && pwd)
"$here/../certificate.sh" "$ca" "$dir" "$server_name"

unlimited='{per_second: 1000000, burst_count: 1000000}'
cat >"$dir/homeserver.yaml" <<YAML
server_name: "$server_name"
report_stats: false
pid_file: "$dir/synapse.pid"
log_config: "$dir/log.yaml"
signing_key_path: "$dir/signing.key"
media_store_path: "$dir/media"
macaroon_secret_key: "only for tests"
form_secret: "only for tests"
bcrypt_rounds: 4
database: {name: sqlite3, args: {database: "$dir/homeserver.db"}}
listeners:
  - {port: $client_port, type: http, bind_addresses: [127.0.0.1], resources: [{names: [client, media]}]}
  - {port: $federation_port, type: http, tls: true, bind_addresses: [127.0.0.1], resources: [{names: [federation, media]}]}

tls_certificate_path: "$dir/tls.pem"
tls_private_key_path: "$dir/tls.key"
federation_verify_certificates: true
federation_custom_ca_list: ["$ca/ca.pem"]
# An allow list is not asked about server names that are addresses.
ip_range_blacklist: []
trusted_key_servers: []
federation:
  destination_min_retry_interval: 1s
  destination_retry_multiplier: 1
  destination_max_retry_interval: 2s
  max_short_retries: 1
  max_short_retry_delay: 1s
  max_long_retries: 2
  max_long_retry_delay: 1s
  client_timeout: 20s

enable_registration: true
enable_registration_without_verification: true
allow_public_rooms_over_federation: true
room_list_publication_rules: [{action: allow}]
dynamic_thumbnails: true
federation_rr_transactions_per_room_per_second: 1000000

rc_message: $unlimited
rc_registration: $unlimited
rc_login: {address: $unlimited, account: $unlimited, failed_attempts: $unlimited}
rc_joins: {local: $unlimited, remote: $unlimited}
rc_joins_per_room: $unlimited
rc_invites: {per_room: $unlimited, per_user: $unlimited, per_issuer: $unlimited}
rc_room_creation: $unlimited
rc_media_create: $unlimited
rc_presence: {per_user: $unlimited}
rc_user_directory: $unlimited
rc_federation: {window_size: 1000, sleep_limit: 1000000, sleep_delay: 1, reject_limit: 1000000, concurrent: 100}
YAML
cat >"$dir/log.yaml" <<YAML
version: 1
formatters: {line: {format: '%(asctime)s %(levelname)s %(name)s %(request)s: %(message)s'}}
filters: {context: {(): synapse.logging.context.LoggingContextFilter}}
handlers: {file: {class: logging.FileHandler, formatter: line, filters: [context], filename: '$dir/synapse.log'}}
root: {level: ${LOG_LEVEL:-INFO}, handlers: [file]}
disable_existing_loggers: false
YAML
if [ ! -e "$dir/signing.key" ]; then
    "$python" -m synapse.app.homeserver -c "$dir/homeserver.yaml" --generate-keys >"$dir/generate-keys.log" 2>&1
fi

cd "$dir"
setsid "$python" -m synapse.app.homeserver -c "$dir/homeserver.yaml" >>"$dir/stdout.log" 2>&1 </dev/null &
pid=$!
for _ in $(seq 1 600); do
    if ! kill -0 "$pid" 2>/dev/null; then
        echo "synapse-up: the server ended; the end of what it said:" >&2
        tail -n 5 "$dir/stdout.log" >&2
        exit 1
    fi
    if curl -fsS --noproxy "*" -o /dev/null "http://127.0.0.1:$client_port/health" 2>/dev/null; then
        echo "$pid" | tee "$dir/pids"
        exit 0
    fi
    sleep 0.1
done
echo "synapse-up: no answer on port $client_port within a minute" >&2
kill "$pid"
exit 1
