# What KIND-down.sh does: stops what KIND-up.sh started in a directory; the data stays. Read by those scripts.
#
#   stop NAME DIR FILE    FILE: the configuration in DIR that is on the process's command line

stop() {
    local name=$1 dir pid
    dir=$(cd "${2:?usage: $name DIR}" && pwd)
    [ -e "$dir/pids" ] || return 0
    pid=$(head -n 1 "$dir/pids")
    runs() { # also false for a process that only waits to be reaped
        tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF "$dir/$3"
    }
    if runs "$@"; then kill -s TERM "$pid"; fi
    for _ in $(seq 1 600); do
        if ! runs "$@"; then
            rm -f "$dir/pids"
            return 0
        fi
        sleep 0.05
    done
    echo "$name: process $pid still runs" >&2
    return 1
}
