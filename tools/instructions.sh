#!/bin/sh
# Counts the instructions that the I/OAT driver takes to submit and to reap a descriptor, at
# 32 to a batch, on the embedded model. Exits 1 when a shape is over its budget (see below; all
# are divided by 100 and multiplied by PERCENT, 100 by default), with 2 when it cannot count. The
# shapes are those of tests/examples/submit_and_reap.rs; docs/ioat.md has the figures.
set -eu
percent=${PERCENT:-100}
if ! command -v valgrind >/dev/null; then
    echo "valgrind is missing, it does the counting: apt-get install valgrind" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
cargo build --quiet --release -p vfio-dma-tests --example submit_and_reap || exit 2
target=${CARGO_TARGET_DIR:-target}
program=$target/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release/examples/submit_and_reap
[ -x "$program" ] || program=$(find "$target" -path '*/release/examples/submit_and_reap' | head -n 1)
out=$(mktemp)
trap 'rm -f "$out" "$out".*' EXIT
over=0
for shape in pairs:30 slots:30 parts scattered:35 gather:35 uneven single; do
    limit=${shape#*:}
    shape=${shape%:*}
    [ "$limit" != "$shape" ] || limit=
    descriptors=$(valgrind --quiet --tool=callgrind --callgrind-out-file="$out" \
        --collect-atstart=no --toggle-collect='*counted_*' --compress-strings=no \
        "$program" "$shape") || exit 2
    # All of it, less what the doorbell's way into the model costs: the model's registers are
    # not mapped, while those of a device are, where a doorbell is a store.
    total=$(awk '
        /^cfn=/ { model = /write_slow/ }
        after_calls && model { total -= $NF; doorbells++ }
        { after_calls = /^calls=/ }
        $1 == "totals:" { total += $2; found = 1 }
        END { if (found && doorbells) print total }' "$out")
    awk -v n="$descriptors" -v total="$total" -v shape="$shape" -v limit="$limit" \
        -v percent="$percent" 'BEGIN {
        # Nothing counted is no result.
        if (n < 1 || total < n) { print "valgrind counted nothing" >"/dev/stderr"; exit 2 }
        each = total / n
        if (limit != "") limit = limit * percent / 100
        over = limit != "" && each > limit
        printf "%-9s %6.1f instructions for each of %d descriptors", shape, each, n
        print limit == "" ? "" : ", at most " limit (over ? ": TOO MANY" : "")
        exit over
    }' || { status=$?; [ $status = 1 ] || exit 2; over=1; }
done
exit $over
