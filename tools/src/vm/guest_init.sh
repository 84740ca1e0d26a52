#!/bin/busybox sh
# The first process of a guest. It makes the system usable, runs the command, and reports.
#
# Serial ports: ttyS0 is the kernel's console, ttyS1 the command's input and output, ttyS2
# its standard error, ttyS3 carries one line for each step: "ready", then "exit STATUS", or
# "fail REASON".
#
# /etc/vfio-dma/settings sets MODULES (what to load) and INPUT: "none" for an empty
# standard input, "lines" for lines that the host sends, "shell" for a terminal of ROWS
# and COLUMNS. SHARE, if set, is where the host's directory SHARE_TAG goes: the command begins
# there. /etc/vfio-dma/command is the command, as a script.

# VFIO_DMA_GUEST says that what is written to memory is lost when the command has ended.
export PATH=/bin HOME=/root VFIO_DMA_GUEST=1

mount -t devtmpfs dev /dev 2>/dev/null # some kernels have mounted it
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /dev/shm
mount -t tmpfs tmp /tmp
mount -t debugfs debug /sys/kernel/debug 2>/dev/null # not in every kernel
ln -s /proc/self/fd /dev/fd

exec 3>/dev/ttyS3
stty -F /dev/ttyS3 raw -echo

fail() {
	dmesg >/dev/console
	echo "fail $*" | tr '\n' ' ' >&3
	echo >&3
	poweroff -f
}

# Runs the command with this standard input and its output in pipes: a serial port would
# look like a terminal to it, and get colours and progress bars.
piped() {
	mkfifo /tmp/.stdout /tmp/.stderr
	cat /tmp/.stdout >/dev/ttyS1 3>&- &
	out=$!
	cat /tmp/.stderr >/dev/ttyS2 3>&- &
	err=$!
	sh /etc/vfio-dma/command <"$1" >/tmp/.stdout 2>/tmp/.stderr 3>&-
	status=$?
	# What the command left running may hold the pipes; its output is not waited for.
	{ sleep 2; kill $out $err; } >/dev/null 2>&1 3>&- &
	wait $out $err
	return $status
}

. /etc/vfio-dma/settings

for module in $MODULES; do
	said=$(modprobe "$module" 2>&1) || fail "modprobe $module: $said"
done

if [ -n "$SHARE" ]; then
	# msize, in bytes: the most that a virtio queue of 128 pages carries.
	said=$(mount -t 9p -o trans=virtio,version=9p2000.L,msize=507904 "$SHARE_TAG" "$SHARE" 2>&1) ||
		fail "mount the shared directory (NET_9P_VIRTIO and 9P_FS in the kernel): $said"
	cd "$SHARE" || fail "cd $SHARE"
fi

stty -F /dev/ttyS2 raw -echo
case $INPUT in
shell) stty -F /dev/ttyS1 sane ;;
lines) stty -F /dev/ttyS1 raw -echo icanon eof ^D ;;
*) stty -F /dev/ttyS1 raw -echo ;;
esac

echo ready >&3
case $INPUT in
shell)
	# A terminal keeps its size only while it is open.
	script="stty rows $ROWS columns $COLUMNS; . /etc/vfio-dma/command"
	setsid -c sh -c "$script" </dev/ttyS1 >/dev/ttyS1 2>&1 3>&-
	;;
lines) piped /dev/ttyS1 ;;
*) piped /dev/null ;;
esac
status=$?
sync # before the power goes
echo "exit $status" >&3
poweroff -f
