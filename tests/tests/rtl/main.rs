//! Drivers on simulated hardware: Verilog under Verilator, embedded and behind a socket.
//!
//! `VFIO_DMA_WITHOUT=rtl` leaves these suites out: they show as ignored.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

mod engine;
mod litepcie;
mod segments;
mod streams;

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
        litepcie::it_is_measured_in_time_and_in_cycles,
        litepcie::the_width_of_its_bus_is_what_the_card_says,
        litepcie::a_copy_that_is_given_up_ends_soon_and_the_card_goes_on,
    ];
    let streams = cases![
        streams::each_channel_sends_and_receives,
        streams::a_stream_without_data_is_late_and_the_card_goes_on,
        streams::streams_loop_by_themselves,
        streams::synchronizers_hold_streams_back_until_a_pulse,
    ];
    let engine = cases![
        engine::the_same_program_runs_on_the_engine,
        engine::contiguous_against_scattered_in_cycles,
        engine::mistakes_in_the_hardware_are_found,
        engine::the_example_copies_and_finds_each_mistake,
        engine::a_read_that_is_refused_is_told_and_the_engine_goes_on,
        engine::waveforms_are_written_on_request,
    ];
    // It looks at the processor time of this process: by itself, before the others.
    let alone = vec![("litepcie", cases![litepcie::an_idle_card_takes_no_cycles_and_no_time])];
    let others = vec![("litepcie", litepcie), ("streams", streams), ("engine", engine)];
    let arguments = Arguments::from_args();
    let passed = [alone, others].map(|suites| {
        let conclusion = libtest_mimic::run(&arguments, trials(suites));
        !conclusion.has_failed()
    });
    if passed == [true; 2] { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn trials(suites: Vec<(&str, Vec<Case>)>) -> Vec<Trial> {
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
    trials.collect()
}
