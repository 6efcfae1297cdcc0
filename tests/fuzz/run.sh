#!/usr/bin/env bash
# Runs each fuzz target for a while, and prints how many inputs it tried. Fails when one of them crashes or hangs.
#
#   run.sh [SECONDS] [TARGET…]     default: 60, all targets
#
# Needs a C++ compiler; cargo-fuzz is installed under target/fuzz if it is not there. RUSTC_BOOTSTRAP lets the stable
# compiler build with a sanitizer.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
seconds=${1:-60}
shift || true
work=$repository/target/fuzz
mkdir -p "$work"
export RUSTC_BOOTSTRAP=1 PATH=$work/tools/bin:$PATH

command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz --root "$work/tools"

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cd "$here/targets" && ls ./*.rs | sed 's|^\./||; s|\.rs$||')
failed=0
for target in "${targets[@]}"; do
    corpus=$work/corpus/$target
    mkdir -p "$corpus"
    log=$work/$target.log
    # What a target takes is small, and so is what it may keep.
    if cargo fuzz run --fuzz-dir "$here" --target-dir "$work/build" "$target" "$corpus" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        >"$log" 2>&1; then
        printf '%-16s %s inputs in %s s\n' "$target" \
            "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$seconds"
    else
        tail -n 30 "$log" >&2
        printf '%-16s FAILED, see %s\n' "$target" "$log"
        failed=1
    fi
done
exit "$failed"
