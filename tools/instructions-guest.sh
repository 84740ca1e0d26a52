#!/bin/sh
# Counts the instructions that the I/OAT driver takes over the kernel's VFIO, in a guest: QEMU's
# `-icount shift=0` advances the time stamp counter by one for each instruction, so that the
# figures are the same in every run. The program is tests/examples/submit_and_reap.rs, which has
# the budgets; exits 1 when a shape is over its own, with 2 when it cannot count. What the guest
# needs is fetched once, as for `vfio-dma vm`. docs/ioat.md has the figures.
set -eu
cd "$(dirname "$0")/.."
exec cargo run --quiet --release -p vfio-dma-tests --example submit_and_reap -- --guest
