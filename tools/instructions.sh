#!/bin/sh
# Counts the instructions that the I/OAT driver takes to submit and reap a descriptor, at
# 32 to a batch, on the embedded model. Needs valgrind. Exits 1 when it is over the budget.
set -eu
budget=${BUDGET:-60}
cd "$(dirname "$0")/.."
cargo build --quiet --release -p vfio-dma-tests --example submit_and_reap
program=${CARGO_TARGET_DIR:-target}/release/examples/submit_and_reap
[ -x "$program" ] || program=$(find "${CARGO_TARGET_DIR:-target}" -path '*/release/examples/submit_and_reap' | head -n 1)
out=$(mktemp)
trap 'rm -f "$out" "$out".*' EXIT
over=0
for shape in scattered gather single; do
    descriptors=$(valgrind --quiet --tool=callgrind --callgrind-out-file="$out" \
        --collect-atstart=no --toggle-collect='*counted_*' "$program" "$shape")
    total=$(awk '$1 == "totals:" || $1 == "summary:" { print $2; exit }' "$out")
    awk -v n="$descriptors" -v total="$total" -v shape="$shape" -v budget="$budget" 'BEGIN {
        each = total / n
        printf "%-9s %6.1f instructions for each of %d descriptors\n", shape, each, n
        exit shape == "scattered" && each > budget
    }' || over=1
done
exit $over
