#!/bin/sh
# Line tables of the released command, kept apart: the release build is stripped of them, and this
# builds the same code with them and writes what a debugger needs to vfio-dma.debug beside it
# (gdb: symbol-file, or add-symbol-file). Exits 1 when the code is not the same, byte for byte.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --release -p vfio-dma-tools
cargo build --quiet --profile release-lines -p vfio-dma-tools
released=$(find "$target" -path '*/release/vfio-dma' | head -n 1)
lines=$(find "$target" -path '*/release-lines/vfio-dma' | head -n 1)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for program in "$released" "$lines"; do
    objcopy -O binary --only-section=.text "$program" "$dir/$(basename "$(dirname "$program")")"
done
cmp "$dir/release" "$dir/release-lines" || { echo "the code of both builds differs" >&2; exit 1; }
objcopy --only-keep-debug "$lines" "$released.debug"
echo "$released.debug"
