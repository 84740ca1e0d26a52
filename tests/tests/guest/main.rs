//! The suites that drive QEMU's devices through a real kernel's VFIO, in guests.

#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

mod access;
mod bench;
mod binding;
mod card;
mod control;
mod edu;
mod errors;
mod every;
mod examples;
mod first_day;
mod hot_reset;
mod in_use;
mod interrupts;
mod ioat;
mod ioatdma;
mod irq;
mod loopback;
mod memory;
mod numa;
mod nvme;
mod opening;
mod ownership;
mod passed;
mod peer;
mod placement;
mod populate;
mod refusals;
mod removal;
mod rtl;
mod sharing;
mod show;
mod soak;
mod support;
mod testdev;
mod variant;

use std::process::ExitCode;

use vfio_dma_tests::{Scenario, cases};
use vfio_dma_tools::vm::{Device, Iommu, Modules, VmConfig};

#[global_allocator]
static ALLOCATOR: nvme::Counting = nvme::Counting;

/// Three edu devices of different reach, one behind a root port, and a test device.
fn machine(iommu: Iommu) -> VmConfig {
    let devices = [
        "edu",
        "edu,dma_mask=0xffffffff",
        "edu,dma_mask=0xffffffffff",
        "pci-testdev,membar=16M",
        "pcie-root-port,id=bridge,chassis=1",
        // For MSI-X: a network card raises an interrupt when it is told to.
        "e1000e,romfile=",
    ];
    VmConfig {
        iommu,
        devices: devices.map(Device::from).into(),
        // On a bus of its own, so that the kernel can reset it alone.
        qemu_args: ["-device", "edu,bus=bridge"].map(Into::into).into(),
        files: examples::files(),
        ..VmConfig::default()
    }
}

fn vtd(aw_bits: u8) -> VmConfig {
    machine(Iommu::Intel { aw_bits: Some(aw_bits) })
}

/// An edu device and a serial card that are functions of one slot, so of one group.
fn shared_group() -> VmConfig {
    let devices = ["edu,addr=5.0,multifunction=on,bus=pcie.0", "pci-serial,addr=5.1,bus=pcie.0"];
    VmConfig { devices: devices.map(Device::from).into(), ..VmConfig::default() }
}

/// A huge page of 1 GiB, taken at boot: later there is no such run.
fn gigabytes() -> VmConfig {
    VmConfig {
        memory: 4 << 30,
        kernel_args: ["hugepagesz=1G", "hugepages=1"].map(Into::into).into(),
        devices: vec![Device::from("edu,dma_mask=0xffffffffff")],
        ..VmConfig::default()
    }
}

fn no_iommu() -> VmConfig {
    VmConfig {
        iommu: Iommu::None,
        devices: ["edu", "pci-serial"].map(Device::from).into(),
        ..VmConfig::default()
    }
}

fn no_vfio() -> VmConfig {
    VmConfig { devices: vec![Device::from("edu")], modules: Modules::none(), ..VmConfig::default() }
}

fn main() -> ExitCode {
    let mut vtd39 = edu::transfers();
    vtd39.extend(cases![
        edu::identifies_and_computes,
        edu::moves_twice_with_a_reset_between,
        edu::says_so_when_the_bus_cannot_reset_it,
        edu::reaches_32_bits,
        edu::reaches_40_bits_as_far_as_the_iommu_goes,
        edu::refuses_an_address_over_its_mask,
        edu::a_mask_that_the_driver_does_not_know_is_named,
        edu::can_be_dropped_in_the_middle_of_a_transfer,
        edu::a_panic_in_the_middle_of_a_transfer_stops_the_device,
        edu::refuses_what_does_not_fit,
        examples::edu_examples_run,
        examples::the_skeleton_drives_a_card,
        ownership::a_function_is_opened_once_in_a_process,
        ownership::a_bar_that_is_mapped_keeps_its_function_answering,
        ownership::a_command_register_that_is_cleared_from_outside_is_no_signal,
        interrupts::intx_can_be_masked,
        interrupts::msix_vectors_arrive_one_by_one,
        interrupts::kinds_exclude_each_other,
        interrupts::capabilities_are_those_of_the_device,
        edu::writes_and_reads_its_own_buffer,
        edu::ctrl_c_stops_a_run_in_the_middle,
        soak::edu_is_soaked,
        edu::a_copy_that_is_refused_or_late_gives_its_buffers_back,
        testdev::memory_and_port_bars_pass,
        testdev::the_command_line_reports_them,
        sharing::two_devices_share_a_container,
        sharing::each_device_frees_its_own,
        memory::ten_thousand_cycles_leave_nothing_behind,
        memory::directions_are_enforced,
        binding::bind_and_unbind_restore_the_driver,
        binding::run_binds_and_restores,
        binding::list_names_the_devices,
        errors::unknown_and_malformed_addresses,
        errors::not_bound,
        errors::busy,
        errors::not_root,
        errors::memory_lock_limit,
        errors::mask_below_every_range,
        errors::not_a_device_we_drive,
    ]);
    let vtd48 = cases![
        bench::edu_is_measured_in_time_and_says_what_was_left_out,
        edu::moves_64_kib_by_msi,
        edu::reaches_32_bits,
        edu::reaches_all_of_40_bits,
        testdev::memory_and_port_bars_pass,
    ];
    vfio_dma_tests::main(vec![
        Scenario { name: "vtd39", machine: || vtd(39).into(), cases: vtd39 },
        Scenario { name: "vtd48", machine: || vtd(48).into(), cases: vtd48 },
        Scenario {
            name: "bringup",
            machine: || show::machine().into(),
            cases: cases![
                show::virtual_functions_are_switched_on,
                show::names_and_header_are_those_of_lspci,
                show::capabilities_are_those_of_lspci,
                show::without_root_it_says_what_is_missing,
                show::the_payload_path_and_the_link_are_told,
            ],
        },
        Scenario {
            name: "card",
            machine: || show::machine().into(),
            cases: cases![
                card::registers_are_read_and_written_without_a_driver,
                card::dumps_are_hexadecimal_or_by_name,
                card::what_changes_is_watched,
                card::ports_are_read_and_written,
                card::configuration_space_is_read_and_written_by_name,
                card::silence_is_explained,
                card::a_function_that_vfio_has_is_not_reset_unless_asked,
                card::a_card_that_goes_away_is_an_error_and_no_signal,
            ],
        },
        Scenario {
            name: "every",
            machine: || show::machine().into(),
            cases: cases![
                show::virtual_functions_are_switched_on,
                every::what_reads_answers_for_every_function,
                every::what_acts_answers_for_every_function,
            ],
        },
        Scenario {
            name: "card_held",
            machine: || card::held().into(),
            cases: cases![card::a_bar_that_a_driver_has_for_itself_is_explained],
        },
        Scenario {
            name: "first_day",
            machine: || first_day::machine().into(),
            cases: cases![first_day::the_page_says_what_the_commands_say],
        },
        Scenario {
            name: "udev",
            machine: || binding::with_udev().into(),
            cases: cases![binding::a_binding_outlives_a_reboot],
        },
        Scenario {
            name: "control",
            machine: || control::machine().into(),
            cases: cases![
                binding::several_are_bound_and_given_back,
                binding::status_tells_who_uses_what,
                irq::the_kernel_triggers_each_vector_of_each_kind,
                irq::an_interrupt_of_the_card_is_waited_for,
                irq::rates_are_shown_live,
                control::a_function_is_reset_where_there_is_a_way,
                control::a_bus_reset_says_what_else_it_hits,
                loopback::a_recipe_moves_and_verifies,
                loopback::a_recipe_that_is_wrong_is_told,
                loopback::the_library_runs_recipes,
                loopback::lines_of_the_shell_are_commands_for_a_card,
                control::a_function_comes_back_with_its_driver,
            ],
        },
        Scenario {
            name: "control_full",
            machine: || control::full().into(),
            cases: cases![
                control::a_bus_reset_says_what_else_it_hits,
                control::a_function_comes_back_with_its_driver,
            ],
        },
        Scenario {
            name: "rtl",
            machine: rtl::machine,
            cases: cases![
                rtl::the_same_program_moves_the_same_bytes,
                rtl::bytes_arrive_contiguous_and_in_segments_of_any_size,
                rtl::the_engine_of_the_template_copies,
                rtl::ctrl_c_stops_a_copy_in_the_middle,
                bench::litepcie_is_measured_in_time,
                rtl::the_command_line_copies,
            ],
        },
        Scenario {
            name: "rtl_linux",
            machine: rtl::linux,
            cases: cases![rtl::linuxs_own_driver_binds_the_card_and_its_dma_test_passes],
        },
        Scenario {
            name: "group",
            machine: || shared_group().into(),
            cases: cases![
                errors::member_on_a_host_driver,
                opening::one_of_two_devices_of_a_group_is_closed_without_a_word,
            ],
        },
        Scenario {
            name: "placement",
            machine: || vtd(39).into(),
            cases: cases![
                edu::the_same_program_moves_the_same_bytes,
                placement::the_command_line_forces_a_placement,
                placement::a_fragmented_iova_space_falls_through,
                placement::a_device_mask_falls_through,
                placement::a_memory_lock_limit_falls_through_to_the_pool,
                placement::the_limit_of_mappings_is_a_reason,
                placement::huge_pages_make_one_map_call,
                placement::a_file_is_moved_in_place,
                placement::a_buffer_is_promoted_between_transfers,
                placement::physical_memory_is_found_in_every_way,
            ],
        },
        Scenario {
            name: "removal",
            machine: || vtd(39).into(),
            cases: cases![
                removal::unbind_under_a_run_returns,
                removal::sysfs_remove_under_a_bench_returns,
                removal::sigterm_ends_a_bench,
                removal::unbind_under_a_sleeper_returns,
            ],
        },
        Scenario {
            name: "removal_ioat",
            machine: removal::slow_ioat,
            cases: cases![removal::unbind_with_64_transfers_in_flight_ends_each_once],
        },
        Scenario {
            name: "removal_unplugged",
            machine: || removal::behind_port("edu").into(),
            cases: cases![removal::an_unplugged_function_ends_its_transfer],
        },
        Scenario {
            name: "removal_surprise",
            machine: || removal::behind_hot_plug_port().into(),
            cases: cases![removal::a_function_that_is_pulled_out_ends_its_transfer],
        },
        Scenario {
            name: "removal_error_nvme",
            machine: || removal::slow_drive().into(),
            cases: cases![removal::an_uncorrectable_error_ends_transfers_until_the_reset],
        },
        Scenario {
            name: "removal_error",
            machine: || removal::behind_port("virtio-rng-pci,aer=on,disable-legacy=on").into(),
            cases: cases![removal::an_uncorrectable_error_ends_a_wait_until_the_reset],
        },
        Scenario {
            name: "peer",
            machine: || peer::machine().into(),
            cases: cases![
                peer::a_device_writes_to_and_reads_from_the_memory_of_another,
                peer::what_is_no_memory_of_whole_pages_is_refused,
                peer::what_is_lent_ends_with_its_card,
                peer::whoever_was_lent_memory_can_leave_first,
            ],
        },
        Scenario {
            name: "peer_iommufd",
            machine: || peer::full().into(),
            cases: cases![
                peer::it_does_through_iommufd,
                peer::what_is_lent_through_iommufd_ends_with_its_card,
                access::the_kernel_is_content,
            ],
        },
        Scenario {
            name: "numa",
            machine: || numa::machine().into(),
            cases: cases![
                numa::memory_comes_from_the_node_of_the_device,
                numa::a_node_that_is_exhausted_is_a_reason,
                numa::the_command_line_says_where_memory_is,
            ],
        },
        Scenario {
            name: "hot_reset",
            machine: || hot_reset::machine().into(),
            cases: cases![
                hot_reset::a_bus_is_reset_by_who_owns_its_groups,
                hot_reset::the_command_line_resets_a_bus_through_vfio,
            ],
        },
        Scenario {
            name: "hot_reset_iommufd",
            machine: || hot_reset::full().into(),
            cases: cases![
                hot_reset::a_bus_is_reset_by_who_owns_its_devices,
                access::the_kernel_is_content,
            ],
        },
        Scenario {
            name: "variant",
            machine: || variant::machine().into(),
            cases: cases![variant::a_variant_opens_as_vfio_pci_does],
        },
        Scenario {
            name: "gigabytes",
            machine: || gigabytes().into(),
            cases: cases![placement::a_huge_page_of_1_gib_is_one_map_call],
        },
        Scenario {
            name: "no_iommu",
            machine: || no_iommu().into(),
            cases: cases![errors::no_iommu, binding::a_refused_bind_gives_the_driver_back],
        },
        Scenario {
            name: "no_vfio",
            machine: || no_vfio().into(),
            cases: cases![errors::no_vfio_module],
        },
        Scenario {
            name: "ioat",
            machine: ioat::machine,
            cases: cases![
                ioat::the_same_program_moves_the_same_bytes,
                ioat::a_drop_and_a_panic_in_mid_transfer_stop_the_engine,
                ioat::slots_move_their_bytes_and_come_back,
                ioat::a_drop_and_a_panic_with_slots_in_flight_stop_the_engine,
                ioat::every_way_of_waiting_ends,
                ioat::the_command_line_copies,
                bench::ioat_is_measured_in_time,
                soak::ioat_is_soaked,
                examples::ioat_examples_run,
            ],
        },
        Scenario {
            name: "refusals",
            machine: || refusals::machine().into(),
            cases: cases![
                refusals::the_table_has_every_request,
                refusals::what_the_kernel_refuses_by_itself_says_the_same,
                refusals::what_is_not_there_is_no_error,
                refusals::what_cannot_be_given_back_is_logged,
                refusals::type1_says_what_each_refusal_means,
                refusals::iommufd_says_what_each_refusal_means,
                access::the_kernel_is_content,
            ],
        },
        Scenario {
            name: "access_iommufd",
            machine: access::iommufd,
            cases: cases![
                access::edu_moves_64_kib_by_msi_through_iommufd,
                access::two_devices_share_an_ioas,
                access::iommufd_enforces_directions,
                removal::unbind_through_iommufd_returns,
                access::iommufd_windows_leave_reserved_regions_out,
                access::iommufd_refuses_what_is_mapped_and_unmaps_exactly,
                access::iommufd_cycles_leave_nothing_behind,
                access::registers_and_interrupts_work_through_iommufd,
                access::the_group_and_the_character_device_exclude_each_other,
                passed::who_may_not_open_anything_drives_a_card,
                passed::a_device_is_opened_from_what_was_passed,
                passed::what_was_passed_is_checked,
                passed::two_processes_share_an_ioas,
                access::iommufd_tells_an_unprivileged_user_what_to_do,
                access::iommufd_memory_lock_limit,
                access::auto_prefers_type1_and_falls_back_to_iommufd,
                access::every_way_that_failed_is_told,
                access::noiommu_is_refused_where_there_is_an_iommu,
                access::the_kernel_is_content,
            ],
        },
        Scenario {
            name: "access_noiommu",
            machine: access::noiommu,
            cases: cases![
                access::auto_never_takes_noiommu,
                access::registers_and_interrupts_work_without_an_iommu,
                access::testdev_passes_without_an_iommu,
                access::a_buffer_cannot_be_mapped_without_an_iommu,
                access::edu_moves_data_in_physical_memory,
                access::a_device_without_an_iommu_is_opened_once,
                refusals::no_iommu_mode_says_what_each_refusal_means,
                access::noiommu_takes_a_capability,
                access::noiommu_says_how_it_is_switched_on,
                access::the_kernel_is_content,
            ],
        },
        Scenario {
            name: "host",
            machine: in_use::machine,
            cases: cases![
                in_use::bridges_are_refused,
                in_use::run_and_bench_refuse_as_bind_does,
                in_use::a_network_card_in_use_is_refused,
                in_use::a_disk_with_a_mounted_file_system_is_refused,
                in_use::a_disk_that_is_swapped_to_is_refused,
                in_use::a_disk_that_something_is_made_of_is_refused,
                in_use::a_disk_that_is_open_is_refused,
                in_use::a_function_with_virtual_functions_is_refused,
                populate::a_limit_of_the_cgroup_is_the_reason_and_smaller_pages_follow,
                populate::a_vfio_user_socket_falls_back_too,
                populate::huge_pages_that_another_takes_out_are_an_error_and_no_signal,
                populate::a_file_without_room_for_its_blocks_is_an_error,
                opening::all_messages_are_had_where_interrupts_are_remapped,
                opening::a_file_on_a_disk_is_read_by_a_device_and_not_written,
                opening::a_bar_is_mapped_through_type1_only,
                opening::a_virtual_function_takes_the_token_of_its_physical_one,
                card::what_the_host_uses_is_read_and_not_written,
                control::what_the_host_uses_is_neither_reset_nor_removed,
                in_use::who_insists_gets_a_disk_in_use,
            ],
        },
        Scenario {
            name: "unremapped",
            machine: in_use::unremapped,
            cases: cases![
                opening::without_interrupt_remapping_doctor_and_the_error_say_so,
                opening::fewer_messages_than_asked_for_are_an_error_with_their_number,
            ],
        },
        Scenario {
            name: "nvme",
            machine: nvme::type1,
            cases: cases![
                nvme::identifies_itself_and_tells_its_health,
                nvme::reads_what_the_host_put_there,
                nvme::many_in_flight_on_several_queues,
                nvme::a_read_allocates_nothing_and_calls_no_kernel,
                nvme::every_way_of_waiting_ends,
                nvme::writes_what_the_host_finds,
                nvme::writing_takes_the_name_of_the_drive,
                nvme::a_drive_with_data_is_not_written,
                nvme::every_kind_of_data_is_seen_and_no_format_is_guessed,
                nvme::the_command_line_reads_and_writes_who_is_named,
                nvme::what_cannot_be_is_refused_before_the_controller_sees_it,
                nvme::a_bad_medium_is_told_by_name,
                nvme::a_list_page_that_is_not_mapped_is_an_error_and_no_more,
                nvme::a_reset_ends_every_transfer_once,
                nvme::a_command_that_is_late_is_given_up,
                nvme::a_read_that_is_aborted_ends_once,
                bench::nvme_is_measured_in_time,
                nvme::an_unbind_with_64_reads_in_flight_ends_each_once,
                soak::nvme_is_soaked,
                nvme::a_drop_and_a_panic_in_mid_transfer_stop_the_queue,
                nvme::a_process_that_is_killed_leaves_a_drive_that_works,
                nvme::the_command_line_writes_a_drive_that_is_named,
            ],
        },
        Scenario {
            name: "nvme_iommufd",
            machine: nvme::iommufd,
            cases: cases![
                nvme::reads_and_writes_through_iommufd,
                nvme::linux_reads_what_was_written_and_the_reverse,
                access::the_kernel_is_content,
            ],
        },
        Scenario {
            name: "nvme_offered",
            machine: nvme::offering,
            cases: cases![
                nvme::shadow_doorbells_save_register_writes,
                nvme::blocks_are_copied_by_the_controller,
                nvme::queues_lie_in_the_controllers_memory,
            ],
        },
        Scenario {
            name: "nvme_judges",
            machine: nvme::judged,
            cases: cases![nvme::nvme_cli_and_fio_read_what_was_written_and_the_reverse],
        },
        Scenario {
            name: "nvme_unplugged",
            machine: nvme::unpluggable,
            cases: cases![
                nvme::an_event_of_the_drive_is_told,
                nvme::an_unplugged_drive_ends_every_read_once,
            ],
        },
        Scenario {
            name: "nvme_instructions",
            machine: nvme::counting,
            cases: cases![nvme::instructions_of_a_read_are_few],
        },
        Scenario {
            name: "nvme_noiommu",
            machine: nvme::noiommu,
            cases: cases![nvme::reads_and_writes_without_an_iommu],
        },
        Scenario {
            name: "ioatdma_stock",
            machine: ioatdma::stock,
            cases: cases![
                ioatdma::probes_and_tests_itself_with_msix,
                ioatdma::probes_and_tests_itself_with_msi,
                ioatdma::probes_and_tests_itself_with_intx,
            ],
        },
        Scenario {
            name: "ioatdma_intel",
            machine: ioatdma::intel,
            cases: cases![
                ioatdma::dmatest_one_channel_by_interrupt,
                ioatdma::dmatest_one_channel_polled,
                ioatdma::dmatest_four_channels_by_interrupt,
                ioatdma::dmatest_four_channels_polled,
            ],
        },
        Scenario {
            name: "ioatdma_amd",
            machine: ioatdma::amd,
            cases: cases![ioatdma::dmatest_behind_this_iommu],
        },
        Scenario {
            name: "ioatdma_virtio",
            machine: ioatdma::virtio,
            cases: cases![ioatdma::dmatest_behind_this_iommu],
        },
        Scenario {
            name: "ioatdma_no_iommu",
            machine: ioatdma::no_iommu,
            cases: cases![ioatdma::dmatest_behind_this_iommu],
        },
        Scenario {
            name: "ioatdma_faults",
            machine: ioatdma::faulty,
            cases: cases![ioatdma::recovers_from_faults],
        },
    ])
}
