#!/bin/bash
# Runs a suite of sluice-bench on SluiceFS and on the file system below it, side by side.
#
#   bench/run.sh first-light|metadata [--work DIR] [--profile PROFILE] [OPTION OF THE SUITE ...]
#
# 1. builds the programs (cargo's profile `release`; another one is for trying this script, not for numbers);
# 2. makes a volume with its metadata in SQLite and, if redis-server is installed, one in a private Redis on a unix
#    socket; data of both in directories below DIR (default: a new directory in /var/tmp); with JUICEFS=/path/to/juicefs
#    the same two again, made and mounted by JuiceFS, with its defaults;
# 3. mounts them, and runs the suite on all mounts and on a plain directory below DIR, which comes first, so that
#    ratios are to the local file system;
# 4. unmounts, ends what it started, and removes its directory, also when anything fails.
#
# Results go to bench/runs/<date>-<host>/, or below the directory given with --out.
set -euo pipefail
here=$PWD
called=("$0" "$@")
cd "$(dirname "$0")/.."

fail() { printf 'bench/run.sh: %s\n' "$*" >&2; exit 1; }
say() { printf '== %s\n' "$*"; }

# A number of tries, 0.1 s apart, for a condition that has no event to wait for in a shell.
eventually() {
    local tries=$1 try
    shift
    for ((try = 0; try < tries; try++)); do
        "$@" && return
        sleep 0.1
    done
    return 1
}

ended() { ! kill -0 "$1" 2>/dev/null; }

# Unlike mountpoint(1), this also sees a mount whose server is gone.
mounted() { grep -qF " $1 fuse" /proc/self/mounts; }

case ${1:-} in
    first-light | metadata) suite=$1; shift ;;
    -h | --help) ;;
    *) fail "which suite? bench/run.sh first-light, or bench/run.sh metadata" ;;
esac
base=/var/tmp
profile=release
options=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
        --work) base=$(cd "$here" && realpath -- "${2:?--work needs a directory}"); shift 2 ;;
        --profile) profile=${2:?--profile needs a name}; shift 2 ;;
        # Typed relative to where the caller is; recorded relative to the source.
        --out)
            options+=(--out "$(realpath -m --relative-to=. -- "$(cd "$here" && realpath -m -- "${2:?--out needs a directory}")")")
            shift 2
            ;;
        *) options+=("$1"); shift ;;
    esac
done

command -v fio >/dev/null || fail "fio is missing, on Debian: apt-get install fio"
say "building"
cargo build --profile "$profile" --locked -p sluice-datapath -p sluice-bench
# The profile `dev` is the one whose directory has another name.
programs=target/${profile/#dev/debug}
sluice=$programs/sluice
juicefs=
if [ -n "${JUICEFS:-}" ]; then
    juicefs=$(cd "$here" && realpath -- "$JUICEFS")
    [ -x "$juicefs" ] || fail "JUICEFS=$JUICEFS is no program"
fi

work=$(mktemp -d "$base/sluice-bench.XXXXXX")
servers=()      # all that must end before the directory is removed
mounts=()       # "PROGRAM MOUNTPOINT"

clean_up() {
    local status=$? mount pid point
    trap - EXIT INT TERM
    set +e
    for mount in "${mounts[@]}"; do
        point=${mount#* }
        ! mounted "$point" || timeout 120 "${mount%% *}" umount "$point"
        if mounted "$point"; then
            echo "bench/run.sh: $point did not unmount, detaching it" >&2
            umount --lazy "$point" || fusermount3 -u -z "$point"
        fi
    done
    [ -z "${redis:-}" ] || kill "$redis"
    for pid in "${servers[@]}"; do
        eventually 300 ended "$pid" || { echo "bench/run.sh: killing server $pid" >&2; kill -KILL "$pid"; }
        wait "$pid" 2>/dev/null
    done
    [ $status -eq 0 ] || tail -n 20 "$work"/*.log >&2
    # Never through a mount that is still there.
    rm -rf --one-file-system "$work"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

targets=()
arguments=(--program "$sluice" --note "called as: ${called[*]@Q} (profile $profile)")

# mount_volume NAME PROGRAM META-URL EXTRA-PID OPTION...: mounts and adds a target. The servers charged are the process
# started, its children (JuiceFS serves from a child), and the database if there is one.
mount_volume() {
    local name=$1 program=$2 url=$3 extra=$4 point=$work/$1.mnt pid pids
    shift 4
    mkdir "$point"
    "$program" mount "$@" "$url" "$point" </dev/null >"$work/$name.log" 2>&1 &
    pid=$!
    servers+=("$pid")
    mounts+=("$program $point")
    mounted_or_ended() { mounted "$point" || ended "$pid"; }
    eventually 300 mounted_or_ended && ! ended "$pid" || fail "$name did not mount"
    pids=$(printf '%s\n' "$pid" $(cat /proc/"$pid"/task/*/children) $extra | paste -sd,)
    targets+=(--target "$name=$point:$pids")
    arguments+=(--note "$name: $(basename "$program") mount ${*:+$* }$url MOUNTPOINT")
}

# sluice_volume NAME META-URL EXTRA-PID
sluice_volume() {
    "$sluice" format --quiet --trash-days 0 --bucket "$work/$1.data" "$2" "$1"
    mount_volume "$1" "$sluice" "$2" "$3"
}

# juicefs_volume NAME META-URL EXTRA-PID
juicefs_volume() {
    "$juicefs" format --quiet --trash-days 0 --storage file --bucket "$work/$1.data/" "$2" "$1"
    mount_volume "$1" "$juicefs" "$2" "$3" --no-usage-report --cache-dir "$work/$1.cache"
}

say "volumes below $work"
mkdir "$work/local"
if [ -n "$juicefs" ]; then
    # One name for it on every machine, in commands and results.
    ln -s "$juicefs" "$work/juicefs"
    juicefs=$work/juicefs
    arguments+=(--program "$juicefs")
fi
targets+=(--target "local=$work/local")
sluice_volume sluice-sqlite "sqlite3://$work/sluice.db" ""
[ -z "$juicefs" ] || juicefs_volume juicefs-sqlite "sqlite3://$work/juicefs.db" ""

if command -v redis-server >/dev/null; then
    redis-server --port 0 --unixsocket "$work/redis.sock" --dir "$work" --save "" --appendonly yes \
        --appendfsync everysec --daemonize no </dev/null >"$work/redis.log" 2>&1 &
    redis=$!
    servers+=("$redis")
    eventually 100 test -S "$work/redis.sock" || fail "redis-server did not start"
    arguments+=(--program redis-server --note "Redis: appendonly yes, appendfsync everysec, no RDB snapshots")
    sluice_volume sluice-redis "unix://$work/redis.sock?db=1" "$redis"
    [ -z "$juicefs" ] || juicefs_volume juicefs-redis "unix://$work/redis.sock?db=2" "$redis"
else
    say "redis-server is not installed: no volumes in Redis"
fi

say "measuring"
"$programs/sluice-bench" "$suite" "${targets[@]}" "${arguments[@]}" "${options[@]}"
