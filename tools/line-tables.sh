#!/bin/sh
# A release of the command: target/dist/vfio-dma, stripped of line tables, and the tables of that
# very build beside it, vfio-dma.debug, where debuggers look for them by name. Exits 1 when either
# is not what it should be.
set -eu
cd "$(dirname "$0")/.."
for program in objcopy readelf; do
    command -v "$program" >/dev/null || {
        echo "$program is missing: apt-get install binutils" >&2
        exit 1
    }
done
target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --profile release-lines -p vfio-dma-tools
built=$target/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release-lines/vfio-dma
[ -x "$built" ] || built=$(find "$target" -path '*/release-lines/vfio-dma' | head -n 1)
mkdir -p "$target/dist"
program=$target/dist/vfio-dma
objcopy --only-keep-debug "$built" "$program.debug"
objcopy --strip-debug --add-gnu-debuglink="$program.debug" "$built" "$program"
has_lines() {
    readelf --sections --wide "$1" | grep -q ' \.debug_line '
}
has_lines "$program.debug" || { echo "$program.debug has no line tables" >&2; exit 1; }
! has_lines "$program" || { echo "$program is not stripped" >&2; exit 1; }
"$program" --version
ls -l "$program" "$program.debug"
