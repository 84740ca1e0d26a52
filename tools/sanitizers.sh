#!/usr/bin/env bash
# Runs the suites that need no guest where they show what an ordinary run does not:
# tools/sanitizers.sh [shuttle|thread|address|miri]..., all of them by default.
#
#   shuttle  tests of what is concurrent, each under VFIO_DMA_SCHEDULES (1000) random schedules of
#            its threads, and as many that delay one of them
#   thread   ThreadSanitizer: data races
#   address  AddressSanitizer: memory that is not there, or not any more
#   miri     undefined behaviour, in what fills memory that a device shares
#
# thread and address take the stable toolchain, whose unstable options RUSTC_BOOTSTRAP opens; thread
# also its component rust-src, which rustup installs, where it is; miri takes a nightly toolchain with
# miri and rust-src. Exits with 1 when something was found, with 2 when something is missing.
# docs/evidence.md says what is left out, and why.
set -euo pipefail
cd "$(dirname "$0")/.."

kinds=("$@")
[ $# -gt 0 ] || kinds=(shuttle thread address miri)
for kind in "${kinds[@]}"; do
	case $kind in
	shuttle | thread | address | miri) ;;
	*)
		echo "usage: tools/sanitizers.sh [shuttle|thread|address|miri]..." >&2
		exit 2
		;;
	esac
done
triple=$(rustc -vV | sed -n 's/^host: //p')
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# run COMMAND...: as it says, where each test program has run some tests.
run() {
	local ended=0
	"$@" 2>&1 | tee "$log" || ended=1
	if [ "$ended" = 0 ] && { ! grep -q '^test result: ok\.' "$log" ||
		grep -q '^test result: ok\. 0 passed' "$log"; }; then
		echo "a test program has run no test" >&2
		ended=1
	fi
	return "$ended"
}

# with KIND: as an instrumented program.
with() {
	local kind=$1 source
	local test=(cargo test --target "$triple" --target-dir "target/$kind")
	if [ "$kind" = thread ]; then
		# On a standard library that is instrumented too, or its locks would look like races.
		source="$(rustc --print sysroot)/lib/rustlib/src/rust/library"
		if [ ! -d "$source" ] && ! rustup component add rust-src; then
			echo "the standard library's source is missing: rustup component add rust-src" >&2
			return 2
		fi
		test+=(-Zbuild-std)
	fi
	local skipped=(
		# 65,535 of something within a time, or 200,000, or a million: cargo test has them.
		--skip may_be_ahead --skip can_be_ahead --skip can_make_the_process_map
		--skip two_hundred_thousand --skip a_million_packets
		# Every state of small things, one after another in one thread.
		--skip exhaustive
		# 16 TiB of addresses, which a sanitizer does not leave.
		--skip huge_pages_that_cannot_be_had
		# Under sanitizers mlock does nothing.
		--skip the_lock_limit_and_hidden_frames
	)
	if [ "$kind" = thread ]; then
		# A bus error in a copy that ThreadSanitizer is just looking at: it waits for itself then.
		skipped+=(--skip memory::tests::lost)
	fi
	export PROPTEST_CASES="${PROPTEST_CASES:-32}"
	export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=$kind -Ctarget-feature=-crt-static"
	# Both signals are the library's own, or end the process.
	local signals="handle_segv=0 handle_sigbus=0"
	export TSAN_OPTIONS="halt_on_error=1 $signals suppressions=$PWD/tools/thread.supp ${TSAN_OPTIONS:-}"
	export ASAN_OPTIONS="detect_leaks=0 $signals ${ASAN_OPTIONS:-}"
	run "${test[@]}" -p vfio-dma -p vfio-dma-model --lib -- "${skipped[@]}" &&
		run "${test[@]}" -p vfio-dma-tools --lib -- soak::
}

status=0
for kind in "${kinds[@]}"; do
	echo "== $kind"
	case $kind in
	shuttle)
		RUSTFLAGS="--cfg shuttle" run cargo test --target-dir target/shuttle \
			-p vfio-dma -p vfio-dma-model --lib -- schedules || status=$?
		;;
	thread | address)
		(with "$kind") || status=$?
		;;
	miri)
		# rustup knows the toolchain by its rustc, cargo by its own.
		if ! rustc +nightly -V >/dev/null 2>&1 || ! cargo +nightly miri --version >/dev/null 2>&1; then
			echo "Miri is missing: rustup toolchain install nightly --component miri --component rust-src" >&2
			status=2
			continue
		fi
		# Without isolation proptest finds no file of regressions; with one case it ends. A thread
		# that watches for events outlives the tests.
		export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance -Zmiri-ignore-leaks"
		PROPTEST_CASES=1 CARGO_BUILD_TARGET='' run cargo +nightly miri test --target-dir target/miri \
			-p vfio-dma --lib -- dma::coherent:: dma::slots:: dma::sg::tests:: \
			devices::ioat::descriptor:: devices::ioat::tests::slots:: \
			nonsense_in_the_word_or_the_mark || status=$?
		;;
	esac
done
exit $status
