//! Drivers on simulated hardware: Verilog under Verilator, embedded and behind a socket.
//!
//! `VFIO_DMA_WITHOUT=rtl` leaves these suites out: they show as ignored.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

mod engine;
mod litepcie;
mod segments;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use vfio_dma_tests::{Case, cases, is_left_out};

fn main() -> ExitCode {
    let _ = env_logger::Builder::from_env(env_logger::Env::default()).is_test(true).try_init();
    let litepcie = cases![
        litepcie::the_map_of_registers_is_the_drivers,
        litepcie::the_same_program_runs_embedded,
        litepcie::the_same_program_runs_over_a_socket,
        litepcie::segments_of_any_size_arrive_over_a_socket,
        litepcie::sixty_four_mebibytes_arrive_contiguous_and_scattered,
        litepcie::cycles_for_each_segment_size,
        litepcie::latency_and_order_of_completions_change_no_byte,
        litepcie::faults_are_found_and_the_card_goes_on,
        litepcie::two_channels_loop_by_themselves,
        litepcie::an_idle_card_takes_no_cycles,
    ];
    let engine = cases![
        engine::the_same_program_runs_on_the_engine,
        engine::contiguous_against_scattered_in_cycles,
        engine::mistakes_in_the_hardware_are_found,
        engine::a_read_that_is_refused_is_told_and_the_engine_goes_on,
        engine::waveforms_are_written_on_request,
    ];
    let suites: [(&str, Vec<Case>); 2] = [("litepcie", litepcie), ("engine", engine)];
    let without = is_left_out("rtl");
    let trials = suites.into_iter().flat_map(|(suite, cases)| {
        cases.into_iter().map(move |case| {
            let run = move || {
                (case.run)();
                Ok(())
            };
            Trial::test(format!("{suite}::{}", case.name), run).with_ignored_flag(without)
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
