#!/usr/bin/env bash
# Stops what synapse-up.sh started in DIR; the data stays.
#
#   synapse-down.sh DIR
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../down.sh"
stop synapse-down.sh "${1:-}" homeserver.yaml
