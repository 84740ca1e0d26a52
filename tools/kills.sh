#!/usr/bin/env bash
# Kills processes with SIGKILL in mid-transfer: tools/kills.sh [CLIENTS [SERVERS [GUEST]]], by
# default 1000 clients of one vfio-user server, 300 servers under a client, and 100 processes in a
# guest that have a device open through VFIO. After each the next user must start clean; at the end
# nothing may have leaked. Exits 1 when something is wrong, with 2 when it cannot be tried.
# SEED=N makes the times of the kills come again. docs/soak.md says what is compared.
set -euo pipefail
cd "$(dirname "$0")/.."

clients=${1:-1000}
servers=${2:-300}
guest=${3:-100}
for number in "$clients" "$servers" "$guest"; do
	case $number in
	'' | *[!0-9]*)
		echo "usage: tools/kills.sh [CLIENTS [SERVERS [GUEST]]]" >&2
		exit 2
		;;
	esac
done
RANDOM=${SEED:-$$}

program=${VFIO_DMA:-}
if [ -z "$program" ]; then
	cargo build --quiet -p vfio-dma-tools || exit 2
	program=$(cargo build --quiet -p vfio-dma-tools --message-format json |
		sed -n 's/.*"executable":"\([^"]*\/vfio-dma\)".*/\1/p' | tail -n 1)
fi
[ -x "$program" ] || { echo "there is no program vfio-dma: VFIO_DMA names one" >&2; exit 2; }

directory=$(mktemp -d)
socket=$directory/ioat
server=
cleanup() {
	# shellcheck disable=SC2046 # a list of numbers
	kill -KILL $server $(jobs -p) 2>/dev/null || true
	rm -rf "$directory"
}
trap cleanup EXIT
wrong() {
	echo "kills: $*" >&2
	tail -n 20 "$directory"/*.log >&2 || true
	exit 1
}

# Sleeps between 5 ms and $1 ms.
nap() {
	sleep "$(printf '0.%03d' $((5 + RANDOM % ($1 - 5))))"
}
start_server() {
	"$program" model --socket "$socket" >"$directory/server.log" 2>&1 &
	server=$!
	disown "$server"
	for _ in $(seq 200); do
		# It listens when its socket is in the kernel's table.
		if grep -qF "$socket" /proc/net/unix && kill -0 "$server" 2>/dev/null; then
			return
		fi
		sleep 0.05
	done
	wrong "server $server does not listen"
}
stop_server() {
	kill -TERM "$server"
	ends "$server" || wrong "the server does not end on SIGTERM"
}
# Whether a process ends within 20 s.
ends() {
	for _ in $(seq 400); do
		kill -0 "$1" 2>/dev/null || return 0
		sleep 0.05
	done
	return 1
}
use() {
	timeout -k 1 60 "$program" run "$socket" --size 64K >"$directory/run.log" 2>&1 ||
		wrong "$1: run fails with $?"
}
# What the server holds: descriptors, threads, address ranges, dead children.
held() {
	local descriptors threads ranges
	descriptors=$(find "/proc/$server/fd" -mindepth 1 | wc -l)
	threads=$(find "/proc/$server/task" -mindepth 1 -maxdepth 1 | wc -l)
	ranges=$(grep -c memfd "/proc/$server/maps" || true)
	echo "$descriptors descriptors, $threads threads, $ranges mapped memfds"
}
# The last client's connection is closed a moment after it has ended.
check_held() {
	local now
	for _ in $(seq 100); do
		now=$(held)
		[ "$now" != "$1" ] || return 0
		sleep 0.05
	done
	wrong "the server held $1; after $2 kills: $now"
}

if [ "$clients" -gt 0 ]; then
	start_server
	use "before the first kill"
	before=$(held)
	for n in $(seq "$clients"); do
		"$program" soak "$socket" --for 60s --seed "$n" >"$directory/client.log" 2>&1 &
		client=$!
		nap 120
		kill -KILL "$client" || wrong "client $n ended by itself"
		wait "$client" 2>/dev/null || true
		if [ $((n % 50)) = 0 ] || [ "$n" = "$clients" ]; then
			use "after $n clients were killed"
			check_held "$before" "$n"
			echo "$n clients of one server killed: run works, and the server holds $before"
		fi
	done
	stop_server
fi

for n in $(seq "$servers"); do
	start_server
	"$program" soak "$socket" --for 60s --seed "$n" >"$directory/client.log" 2>&1 &
	client=$!
	nap 200
	kill -KILL "$server"
	ends "$client" || wrong "client $client goes on without server $n"
	status=0
	wait "$client" 2>/dev/null || status=$?
	case $status in
	1) ;;
	*) wrong "the client of killed server $n ended with $status" ;;
	esac
	! grep -q panicked "$directory/client.log" || wrong "the client of server $n panicked"
	if [ $((n % 25)) = 0 ] || [ "$n" = "$servers" ]; then
		start_server
		use "after $n servers were killed"
		stop_server
		echo "$n servers killed: their clients ended, and the next server starts on the same path"
	fi
done

if [ "$guest" -gt 0 ]; then
	share=$directory/share
	mkdir "$share"
	cat >"$share/kills" <<-'GUEST'
		device=0000:00:05.0
		vfio-dma bind $device || exit 1
		vfio-dma run $device --size 64K >/dev/null || exit 1
		n=0
		while [ $n -lt "$1" ]; do
			n=$((n + 1))
			vfio-dma soak $device --for 60s --seed $n >/dev/null 2>soak.log &
			client=$!
			usleep $((20000 + n * 7919 % 400000))
			kill -KILL $client || { cat soak.log; echo "process $n ended by itself"; exit 1; }
			wait $client 2>/dev/null
			if [ $((n % 10)) = 0 ] || [ $n = "$1" ]; then
				vfio-dma run $device --size 64K >run.log 2>&1 || {
					cat run.log
					echo "run fails after $n kills"
					exit 1
				}
				locked=$(awk '/^Mlocked:/ { print $2 }' /proc/meminfo)
				[ "$locked" = 0 ] || { echo "$locked kB stay locked"; exit 1; }
				echo "$n processes with the device open killed in the guest: run works"
			fi
		done
		vfio-dma unbind $device
	GUEST
	"$program" vm --device ioat,channels=2 --share "$share" --timeout $((120 + guest * 10)) -- \
		sh ./kills "$guest" 2>"$directory/guest.log" || wrong "in the guest: exit status $?"
fi
echo "kills: nothing is wrong"
