#!/usr/bin/env bash
# Stops what hearth-up.sh started in DIR; the data stays.
#
#   hearth-down.sh DIR
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/down.sh"
stop hearth-down.sh "${1:-}" hearth.toml
