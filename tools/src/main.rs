//! The `vfio-dma` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vfio_dma_tools::cli::main()
}
