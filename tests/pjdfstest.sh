#!/bin/sh
# Runs pjd's POSIX suite on a fresh sluice volume, once per metadata engine, as root.
#
#   PJDFSTEST=/path/to/built/pjdfstest tests/pjdfstest.sh [sqlite] [redis]
#   tests/pjdfstest.sh --fetch [sqlite] [redis]
#
# Without names of engines, both. --fetch clones and builds github.com/pjd/pjdfstest in the scratch
# directory (git, autoconf, automake, a C compiler); the suite needs prove (perl), Redis needs redis-server.
# The binary is SLUICE, else target/debug/sluice. JOBS test files run at once (1 unless set).
# Prints one line per engine and every failing file; exit code 1 when a file fails that is not in `known`.
set -eu

# Files that fail for a reason we accept, one a line: file, blank, reason.
known() {
    cat <<'TABLE'
TABLE
}

say() { printf '%s\n' "$*"; }
die() { say "pjdfstest.sh: $*" >&2; exit 1; }

here=$(cd "$(dirname "$0")/.." && pwd)
sluice=${SLUICE:-$here/target/debug/sluice}
fetch=no
engines=
for argument; do
    case $argument in
        --fetch) fetch=yes ;;
        sqlite | redis) engines="$engines $argument" ;;
        *) die "unknown argument '$argument': use --fetch, sqlite, redis" ;;
    esac
done
engines=${engines:-sqlite redis}

[ "$(id -u)" = 0 ] || die "the suite changes owners: run it as root"
[ -x "$sluice" ] || die "no sluice at $sluice: run cargo build or set SLUICE"
command -v prove >/dev/null || die "no prove: install perl"

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sluice-pjd.XXXXXX")
# The suite acts as other users, who must reach the mount.
chmod 755 "$scratch"
redis_pid=
server_pid=

end_volume() {
    if [ -n "$server_pid" ]; then
        "$sluice" umount "$scratch/mnt" || umount -l "$scratch/mnt" || true
        wait "$server_pid" || true
        server_pid=
    fi
    if [ -n "$redis_pid" ]; then
        kill "$redis_pid" || true
        wait "$redis_pid" || true
        redis_pid=
    fi
}
trap 'cd /; end_volume; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

if [ "$fetch" = yes ]; then
    PJDFSTEST=$scratch/pjdfstest
    git clone -q --depth 1 https://github.com/pjd/pjdfstest "$PJDFSTEST"
    (cd "$PJDFSTEST" && autoreconf -ifs && ./configure && make pjdfstest) >"$scratch/build.log" 2>&1 ||
        { cat "$scratch/build.log" >&2; die "pjdfstest did not build"; }
fi
[ -n "${PJDFSTEST:-}" ] || die "set PJDFSTEST to a built pjdfstest, or say --fetch"
[ -x "$PJDFSTEST/pjdfstest" ] || die "no program pjdfstest in $PJDFSTEST: build it (autoreconf -ifs, configure, make)"

# Waits up to 30 s for a command to succeed.
await() {
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || return 1
        sleep 0.1
    done
}

start_redis() {
    command -v redis-server >/dev/null || die "no redis-server: install it, or ask for sqlite alone"
    redis-server --port 0 --unixsocket "$scratch/redis.sock" --save "" --dir "$scratch" \
        --maxmemory-policy noeviction --logfile "$scratch/redis.log" >/dev/null &
    redis_pid=$!
    await test -S "$scratch/redis.sock" || die "redis-server did not start: $(tail -n 3 "$scratch/redis.log")"
}

start_volume() {
    engine=$1
    case $engine in
        sqlite) url=sqlite3://$scratch/meta.db ;;
        redis) start_redis; url="unix://$scratch/redis.sock?db=0" ;;
    esac
    mkdir -p "$scratch/bucket.$engine" "$scratch/mnt"
    "$sluice" format --storage file --bucket "$scratch/bucket.$engine" --trash-days 0 "$url" pjd \
        >"$scratch/format.log" 2>&1 || { cat "$scratch/format.log" >&2; die "sluice format failed on $engine"; }
    "$sluice" mount --cache-dir "$scratch/cache.$engine" "$url" "$scratch/mnt" >"$scratch/mount.log" 2>&1 &
    server_pid=$!
    await mountpoint -q "$scratch/mnt" || { cat "$scratch/mount.log" >&2; die "sluice did not mount on $engine"; }
}

# The failing test files in what prove printed. Its summary also lists files that only passed what the suite
# expected to fail; those have status 0 and no failed test.
failing() {
    grep '(Wstat:' "$1" | grep -v '(Wstat: 0 Tests: [0-9]* Failed: 0)' |
        sed -n 's|^.*tests/\([^ ]*\.t\) *(Wstat:.*|\1|p' | sort -u
}

outcome=0
for engine in $engines; do
    start_volume "$engine"
    result=$scratch/$engine.txt
    mkdir "$scratch/mnt/pjd"
    code=0
    (cd "$scratch/mnt/pjd" && prove -r -j "${JOBS:-1}" "$PJDFSTEST/tests") >"$result" 2>&1 || code=$?
    totals=$(sed -n 's/^Files=\([0-9]*\), Tests=\([0-9]*\),.*/\1 files, \2 tests/p' "$result")
    [ -n "$totals" ] || { tail -n 20 "$result" >&2; die "the suite did not run to its end on $engine"; }
    failing "$result" >"$scratch/failing"
    new=0
    while read -r file; do
        reason=$(known | sed -n "s|^$file ||p")
        if [ -n "$reason" ]; then
            say "$engine: known: $file: $reason"
        else
            new=$((new + 1))
            say "$engine: FAILS: $file"
            grep -F "$file" "$result" | grep -v 'Wstat' | sed 's/^/    /' | head -n 5
            grep -F -A 1 "$file" "$result" | grep 'Failed test' | sed 's/^/    /' || true
        fi
    done <"$scratch/failing"
    # prove fails for reasons other than a failed file, too (a file that does not parse).
    [ "$code" = 0 ] || [ -s "$scratch/failing" ] || new=1
    say "$engine: $totals, $(wc -l <"$scratch/failing") failing files, $new of them not known"
    [ "$new" = 0 ] || { outcome=1; cp "$result" "${TMPDIR:-/tmp}/sluice-pjd-$engine.txt"; say "  all of prove's output: ${TMPDIR:-/tmp}/sluice-pjd-$engine.txt"; }
    end_volume
done
exit "$outcome"
