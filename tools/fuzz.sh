#!/usr/bin/env bash
# Runs the fuzz targets one after the other: tools/fuzz.sh [MINUTES|SECONDSs] [TARGET...], 10
# minutes for each by default. Starts from the seeds in fuzz/corpus and from what former runs
# found, which is kept under ${XDG_CACHE_HOME:-~/.cache}/vfio-dma/fuzz. As many run at a time as
# there are processors (JOBS=N for another number). Exits 1 after a crash, an input that takes over
# 10 s, or more than 512 MiB; the input is then in fuzz/artifacts.
# docs/fuzzing.md says what each target proves.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${XDG_CACHE_HOME:-$HOME/.cache}/vfio-dma
time=${1:-10}
shift || true
case $time in
*[!0-9s]* | '' | s) echo "usage: tools/fuzz.sh [MINUTES|SECONDSs] [TARGET...]" >&2; exit 2 ;;
*s) seconds=${time%s} ;;
*) seconds=$((time * 60)) ;;
esac

if ! command -v cargo-fuzz >/dev/null; then
	PATH=$cache/cargo-fuzz/bin:$PATH
	if ! command -v cargo-fuzz >/dev/null; then
		echo "cargo-fuzz is built, once, into $cache/cargo-fuzz"
		CARGO_BUILD_TARGET='' cargo install --quiet --locked --root "$cache/cargo-fuzz" cargo-fuzz || {
			echo "cargo-fuzz cannot be had: cargo install cargo-fuzz" >&2
			exit 2
		}
	fi
fi
if ! command -v c++ >/dev/null; then
	echo "c++ is missing, libFuzzer is built with it: apt-get install g++" >&2
	exit 2
fi
# The sanitizers' options are unstable, and the toolchain is the stable one.
export RUSTC_BOOTSTRAP=1
triple=$(rustc -vV | sed -n 's/^host: //p')
mapfile -t targets < <(cargo fuzz list)
if [ $# -gt 0 ]; then
	for target; do
		printf '%s\n' "${targets[@]}" | grep -qxF -- "$target" || {
			echo "$target is no target: ${targets[*]}" >&2
			exit 2
		}
	done
	targets=("$@")
fi
echo "building ${#targets[@]} targets with AddressSanitizer"
if [ $# -gt 0 ]; then
	for target in "${targets[@]}"; do cargo fuzz build --target "$triple" "$target"; done
else
	cargo fuzz build --target "$triple"
fi
# run TARGET: what it came to, in a line.
run() {
	local target=$1 log found=$cache/fuzz/$1
	mkdir -p "$found" "fuzz/corpus/$target" "fuzz/artifacts/$target"
	log=$(mktemp)
	if "fuzz/target/$triple/release/$target" "$found" "fuzz/corpus/$target" \
		-artifact_prefix="fuzz/artifacts/$target/" -max_total_time="$seconds" \
		-rss_limit_mb=512 -timeout=10 >"$log" 2>&1; then
		awk -v t="$target" '/DONE|exec\/s/ { line = $0 } END {
			if (line == "") { print t " ran nothing"; exit 1 }
			sub(/^#/, "", line); split(line, f); match(line, /cov: [0-9]+/)
			printf "%-17s %9d executions, %s edges\n", t, f[1], substr(line, RSTART + 5, RLENGTH - 5)
		}' "$log" || return 1
	else
		echo "$target FAILED:"
		tail -n 40 "$log"
		rm -f "$log"
		return 1
	fi
	rm -f "$log"
}
failed=()
jobs=${JOBS:-$(nproc)}
declare -A running=()
reap() {
	local pid status=0
	wait -n -p pid "${!running[@]}" || status=$?
	[ "$status" = 0 ] || failed+=("${running[$pid]}")
	unset "running[$pid]"
}
for target in "${targets[@]}"; do
	[ "${#running[@]}" -lt "$jobs" ] || reap
	run "$target" &
	running[$!]=$target
done
while [ "${#running[@]}" -gt 0 ]; do reap; done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
