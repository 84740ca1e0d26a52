//! Examples for `--help`, the variables that are read, shell completions and manual pages.

use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use super::{Failure, output, usage};

/// The variables that the command and its guests heed.
pub(super) const TOP: &str = "\
Examples:
  vfio-dma
  vfio-dma list
  vfio-dma run model --placement sg --size 16M
  vfio-dma vm --device edu -- vfio-dma run --bind 0000:00:05.0
  vfio-dma bench model --report bench.html

Exit status: 0 done; 1 failed; 2 usage; 130 after Ctrl-C.

Environment:
  RUST_LOG             warn, info, debug: how much is told on standard error
  VFIO_DMA_QEMU        the QEMU to use
  VFIO_DMA_KERNEL      the guest kernel to use
  VFIO_DMA_BUSYBOX     the static busybox to use
  VFIO_DMA_VERILATOR   the Verilator to use
  VFIO_DMA_ACCEL       kvm or tcg; by default KVM where a probe guest boots under it
  XDG_CACHE_HOME       what is fetched is kept in $XDG_CACHE_HOME/vfio-dma
  XDG_STATE_HOME       lines of the shell are kept in $XDG_STATE_HOME/vfio-dma";
pub(super) const LIST: &str = "Examples:\n  vfio-dma list\n  vfio-dma list --json";
pub(super) const SHOW: &str =
    "Examples:\n  vfio-dma show 0000:00:05.0\n  vfio-dma show 0000:00:05.0 --json";
pub(super) const PEEK: &str = "\
Examples:
  vfio-dma peek 0000:00:05.0 0 0x4
  vfio-dma peek 0000:00:05.0 2 0x10:8
  vfio-dma peek 0000:00:05.0 0 STATUS.computing --registers driver/examples/edu.registers.toml";
pub(super) const POKE: &str = "\
Examples:
  vfio-dma poke 0000:00:05.0 0 0x4 0x12345678
  vfio-dma poke 0000:00:05.0 0 STATUS irq-factorial=1 --registers driver/examples/edu.registers.toml";
pub(super) const DUMP: &str = "\
Examples:
  vfio-dma dump 0000:00:05.0 0 0x0..0x40
  vfio-dma dump 0000:00:05.0 0 0x80+32 --width 8
  vfio-dma dump 0000:00:05.0 0 --registers driver/examples/edu.registers.toml --watch";
pub(super) const CONFIG: &str = "\
Examples:
  vfio-dma config 0000:00:05.0
  vfio-dma config 0000:00:05.0 COMMAND MSI_FLAGS.enable 0x40:4
  vfio-dma config 0000:00:05.0 COMMAND.bus-master=1 COMMAND.memory-space=1";
pub(super) const STATUS: &str = "Examples:\n  vfio-dma status\n  vfio-dma status --json";
pub(super) const IRQ: &str = "\
Examples:
  vfio-dma irq 0000:00:05.0
  vfio-dma irq 0000:00:05.0 --kind msi --wait 5 --raise 0:0x60=1
  vfio-dma irq model --watch --for 10";
pub(super) const RESET: &str = "\
Examples:
  vfio-dma reset 0000:03:00.0
  vfio-dma reset 0000:03:00.0 --method flr
  vfio-dma reset 0000:03:00.0 --scope bus --dry-run";
pub(super) const REMOVE: &str = "\
Examples:
  vfio-dma remove 0000:03:00.0";
pub(super) const RESCAN: &str = "\
Examples:
  vfio-dma rescan 0000:03:00.0
  vfio-dma rescan 0000:03:00.0 --wait 60
  vfio-dma rescan";
pub(super) const BIND: &str = "\
Examples:
  vfio-dma bind 0000:00:05.0
  vfio-dma bind 1234:11e8 0000:03:00.0 --persist
  vfio-dma bind group:17
  vfio-dma bind 0000:03:00.0 --group";
pub(super) const UNBIND: &str = "\
Examples:
  vfio-dma unbind 0000:00:05.0
  vfio-dma unbind 1234:11e8 --persist";
pub(super) const DOCTOR: &str = "Examples:\n  vfio-dma doctor\n  vfio-dma doctor 0000:00:05.0";
pub(super) const RUN: &str = "\
Examples:
  vfio-dma run model
  vfio-dma run model --placement sg --size 16M --json
  vfio-dma run model --fault chanerr=8@40
  vfio-dma run --bind 0000:00:05.0
  vfio-dma run ./socket --size 1M";
pub(super) const LOOPBACK: &str = "\
Examples:
  vfio-dma loopback model
  vfio-dma loopback --bind 0000:00:05.0 --recipe driver/examples/edu.recipe.toml --size 8K";
pub(super) const SHELL: &str = "\
Examples:
  vfio-dma shell 0000:00:05.0
  vfio-dma shell model --registers card.toml";
pub(super) const BENCH: &str = "\
Examples:
  vfio-dma bench model
  vfio-dma bench model --report bench.html --json a.json
  vfio-dma bench model --size 1M --segment 4K,64K --rounds 20
  vfio-dma bench --compare a.json b.json
  vfio-dma bench --bind 0000:00:05.0 --link gen4x16";
pub(super) const SOAK: &str = "\
Examples:
  vfio-dma soak model
  vfio-dma soak model --for 10m --fault all
  vfio-dma soak model --operations 100000 --ring 8 --fault double-completion=20us@/101 --json
  vfio-dma soak --bind 0000:00:05.0 --for 1h
  vfio-dma soak ./socket --channels 1 --seed 7

Exit status: 0 when every byte is right, nothing leaked and every failure is explained; else 1.";
pub(super) const VM: &str = "\
Examples:
  vfio-dma vm --device edu -- vfio-dma run --bind 0000:00:05.0
  vfio-dma vm --device ioat,channels=4 --kernel full
  vfio-dma vm --device ioat --share . -- vfio-dma bench --bind 0000:00:05.0 --json a.json

Environment:
  VFIO_DMA_QEMU, VFIO_DMA_KERNEL, VFIO_DMA_BUSYBOX   parts to use instead of fetched ones
  VFIO_DMA_ACCEL                                     kvm or tcg instead of a probe
  XDG_CACHE_HOME                                     where fetched parts are kept";
pub(super) const MODEL: &str = "\
Examples:
  vfio-dma model --socket ./socket
  vfio-dma model --socket ./socket --channels 4 --fault 'no-interrupt@/7'
  vfio-dma model --socket ./socket --device litepcie
  vfio-dma model --socket ./socket --device rtl,top=my_engine,file=my_engine.sv,trace=w.fst";
pub(super) const RTL: &str = "\
Examples:
  vfio-dma rtl build litepcie
  vfio-dma rtl bench litepcie
  vfio-dma rtl bench litepcie,latency=300,channels=2 --size 16M --json
  vfio-dma rtl build rtl,top=my_engine,file=my_engine.sv

Environment:
  VFIO_DMA_VERILATOR   the Verilator to use in place of the one in PATH or a fetched one
  XDG_CACHE_HOME       what is built is kept in $XDG_CACHE_HOME/vfio-dma";
pub(super) const LINK: &str = "\
Examples:
  vfio-dma link gen3x8
  vfio-dma link gen4x16,mps=512 --size 4K,1M --segment 4K";
pub(super) const COMPLETIONS: &str = "\
Examples:
  vfio-dma completions bash > ~/.local/share/bash-completion/completions/vfio-dma
  vfio-dma completions zsh > ~/.zfunc/_vfio-dma";
pub(super) const MAN: &str = "\
Examples:
  vfio-dma man | man -l -
  vfio-dma man bench | man -l -";

/// Print the completions of a shell for this command
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print a manual page, of the command or of one of its subcommands
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// The subcommand
    #[arg(value_name = "SUBCOMMAND")]
    subcommand: Option<String>,
}

pub(super) fn completions(args: &Completions, mut command: Command) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "vfio-dma", &mut text);
    output::print(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &Man, mut command: Command) -> Result<ExitCode, Failure> {
    command.build();
    let (page, title) = match &args.subcommand {
        None => (command, "vfio-dma".to_owned()),
        Some(name) => match command.find_subcommand(name) {
            Some(found) => (found.clone(), format!("vfio-dma-{name}")),
            None => return Err(usage(format!("there is no subcommand {name:?}"))),
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).title(title).render(&mut text)?;
    output::print(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}
