#!/usr/bin/env bash
# Resolves random rooms of one version with Hearth and with Synapse: family.sh VERSION COUNT WORK
# The last line of the log says whether they agreed.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$1 count=$2 work=$3
log=$work/logs/resolution-$version
# Beside the work folder lie the release binaries. Each version has rooms of its own.
if "$work/../release/examples/random_rooms" "$version" "$count" "${version}000000" |
    "$work/synapse/bin/python" "$here/compare.py" >"$log" 2>&1; then
    echo agreed >>"$log"
else
    echo "disagreed, or did not end" >>"$log"
fi
