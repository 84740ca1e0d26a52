#!/bin/sh
# Counts the instructions that the I/OAT driver takes to submit and to reap a descriptor, at
# 32 to a batch, on the embedded model. Exits 1 when a transfer of 32 segments is over the
# budget (BUDGET, 60 for each descriptor), with 2 when it cannot count. The shapes are those
# of tests/examples/submit_and_reap.rs; docs/ioat.md has the figures.
set -eu
budget=${BUDGET:-60}
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
for shape in scattered gather uneven single; do
    descriptors=$(valgrind --quiet --tool=callgrind --callgrind-out-file="$out" \
        --collect-atstart=no --toggle-collect='*counted_*' --compress-strings=no \
        "$program" "$shape") || exit 2
    # All of it, less what the doorbell's call into the model costs.
    total=$(awk '
        /^cfn=/ { model = /region_write/ }
        after_calls && model { total -= $NF; doorbells++ }
        { after_calls = /^calls=/ }
        $1 == "totals:" { total += $2; found = 1 }
        END { if (found && doorbells) print total }' "$out")
    case $shape in
    scattered | gather) limit=$budget ;;
    *) limit= ;;
    esac
    awk -v n="$descriptors" -v total="$total" -v shape="$shape" -v limit="$limit" 'BEGIN {
        # Nothing counted is no result.
        if (n < 1 || total < n) { print "valgrind counted nothing" >"/dev/stderr"; exit 2 }
        each = total / n
        over = limit != "" && each > limit
        printf "%-9s %6.1f instructions for each of %d descriptors", shape, each, n
        print limit == "" ? "" : ", at most " limit (over ? ": TOO MANY" : "")
        exit over
    }' || { status=$?; [ $status = 1 ] || exit 2; over=1; }
done
exit $over
