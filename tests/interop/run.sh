#!/usr/bin/env bash
# Runs every interop suite against the release binary, and ends with how many checks passed and failed.
#
#   run.sh [SUITE…]     first-command, contract, matrix-js-sdk, matrix-nio, kill, resolution, synapse (default: all)
#
# What the suites need is installed under target/interop, from the lock files beside them; nothing else is touched.
#
# Environment:
#   HEARTH            the binary (default: target/release/hearth of this repository, built if it is not there)
#   INTEROP_PORT      first of six free ports (default 18700); the first command needs its own 8008
#   INTEROP_ROUNDS    how often the server is killed (default 8)
#   INTEROP_PEERS     the two servers that the suite synapse plays with (default hearth,synapse)
#   INTEROP_GRAPHS    random rooms of each family of room versions that are resolved beside Synapse (default 2000)
#   INTEROP_URL       another server to play the client suites against; with INTEROP_FOREIGN=1 where it is not Hearth
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
work=$repository/target/interop
port=${INTEROP_PORT:-18700}
suites=("$@")
[ $# -gt 0 ] || suites=(first-command contract matrix-js-sdk matrix-nio kill resolution synapse)
export PYTHONDONTWRITEBYTECODE=1
mkdir -p "$work/logs"
passed=0 failed=0

if [ -z "${HEARTH:-}" ] && [ ! -x "$repository/target/release/hearth" ]; then
    cargo build --release --manifest-path "$repository/Cargo.toml" --target-dir "$repository/target"
fi

install_matrix_js_sdk() {
    local at=$work/matrix-js-sdk
    mkdir -p "$at"
    if ! cmp -s "$here/matrix-js-sdk/package-lock.json" "$at/installed"; then
        rm -rf "$at/node_modules" "$at/installed"
        cp "$here/matrix-js-sdk/"package{,-lock}.json "$at/"
        # Node's version is checked by npm's own, which is not the one that plays.
        (cd "$at" && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error)
        cp "$here/matrix-js-sdk/package-lock.json" "$at/installed"
    fi
    cp "$here/matrix-js-sdk/"*.js "$at/"
}

install_matrix_nio() {
    python_environment matrix-nio
}

install_resolution() {
    python_environment synapse
    cargo build --release --workspace --example random_rooms --manifest-path "$repository/Cargo.toml" \
        --target-dir "$repository/target"
}

# Synapse, and what speaks to it.
install_synapse() {
    python_environment synapse
    python_environment matrix-nio
}

# What requirements.txt of a folder beside this file lists, in an environment of its own.
python_environment() {
    local at=$work/$1 listed=$here/$1/requirements.txt
    if ! cmp -s "$listed" "$at/installed"; then
        rm -rf "$at"
        python3 -m venv "$at"
        "$at/bin/pip" install --quiet -r "$listed"
        cp "$listed" "$at/installed"
    fi
}

first_command() {
    "$here/first_command.py"
}

contract() {
    rm -rf "$work/contract"
    "$here/contract.py" "$work/contract" "$port" "$((port + 1))"
}

kill_rounds() {
    rm -rf "$work/kill"
    "$here/kill.py" "$work/kill" "$((port + 2))" "$((port + 3))" "${INTEROP_ROUNDS:-8}"
}

# One room version of each family: those between have the same rules of resolution and authorization.
resolution() {
    local version agreed=0 versions=(2 3 6 8 10 11 12)
    printf '%s\n' "${versions[@]}" |
        xargs -P 2 -I '{}' "$here/resolution/family.sh" '{}' "${INTEROP_GRAPHS:-2000}" "$work"
    for version in "${versions[@]}"; do
        echo "version $version"
        cat "$work/logs/resolution-$version"
        if [ "$(tail -n 1 "$work/logs/resolution-$version")" = agreed ]; then agreed=$((agreed + 1)); fi
    done
    echo "$agreed passed, $((${#versions[@]} - agreed)) failed"
    [ "$agreed" = "${#versions[@]}" ]
}

# Two servers that share rooms. What they logged stays beside what the suite said.
synapse() {
    local status=0 log
    "$work/matrix-nio/bin/python" "$here/synapse/scenarios.py" "$work/peers" "$port" || status=$?
    for log in "$work"/peers/*/{hearth,synapse}.log; do
        [ ! -e "$log" ] || cp "$log" "$work/logs/synapse-$(basename "$(dirname "$log")").log"
    done
    return "$status"
}

# Plays a client suite against a fresh server, whose log must be free of errors afterwards.
against_a_server() {
    local suite=$1 server=$work/server-$1 status=0 url=${INTEROP_URL:-}
    if [ -z "$url" ]; then
        rm -rf "$server"
        "$here/hearth-up.sh" "$server" "$((port + 4))" "$((port + 5))" "localhost:$((port + 5))" >/dev/null
        url=http://127.0.0.1:$((port + 4))
    fi
    INTEROP_URL=$url "play_${suite//-/_}" || status=$?
    if [ -z "${INTEROP_URL:-}" ]; then
        "$here/hearth-down.sh" "$server" || status=1
        if grep -E 'ERROR|panicked' "$server/hearth.log"; then
            echo "✖ the server logged errors"
            status=1
        fi
    fi
    return "$status"
}

play_matrix_js_sdk() {
    local at=$work/matrix-js-sdk node status=0
    node=$(ls "$at"/node_modules/node-*/bin/node 2>/dev/null | head -n 1)
    (cd "$at" && "${node:-node}" --test-force-exit \
        --test-reporter=spec --test-reporter-destination=stdout \
        --test-reporter=./tally.js --test-reporter-destination="$work/logs/tally" stories.js) || status=1
    cat "$work/logs/tally"
    return "$status"
}

play_matrix_nio() {
    "$work/matrix-nio/bin/python" "$here/matrix-nio/stories.py"
}

# Runs a suite, prints how long it took, and adds up its last line.
suite() {
    local name=$1 began=$SECONDS status=0 last
    shift
    echo "== $name"
    "$@" 2>&1 | tee "$work/logs/$name.log" || status=$?
    last=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$work/logs/$name.log" | tail -n 1 || true)
    if [ -n "$last" ]; then
        passed=$((passed + $(cut -d' ' -f1 <<<"$last")))
        failed=$((failed + $(cut -d' ' -f3 <<<"$last")))
    fi
    if [ "$status" != 0 ] && { [ -z "$last" ] || [[ $last == *" 0 failed" ]]; }; then failed=$((failed + 1)); fi
    echo "== $name took $((SECONDS - began)) s"
}

for name in "${suites[@]}"; do
    case $name in
    first-command) suite "$name" first_command ;;
    contract) suite "$name" contract ;;
    kill) suite "$name" kill_rounds ;;
    resolution)
        install_resolution
        suite "$name" resolution
        ;;
    synapse)
        began=$SECONDS
        install_synapse
        echo "== $name installed in $((SECONDS - began)) s"
        suite "$name" synapse
        ;;
    matrix-js-sdk | matrix-nio)
        began=$SECONDS
        "install_${name//-/_}"
        echo "== $name installed in $((SECONDS - began)) s"
        suite "$name" against_a_server "$name"
        ;;
    *)
        echo "run.sh: there is no suite $name" >&2
        exit 64
        ;;
    esac
done
echo "== interop took $SECONDS s"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
