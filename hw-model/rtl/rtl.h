/* What a simulated top module is to the harness: its pins, cycle by cycle.
 *
 * top.cpp implements it for a module that Verilator has compiled; another simulator can
 * implement it as well. harness.cpp uses nothing else of the hardware.
 *
 * A packet (TLP) is a stream of double words, header first; the first byte on the wire is in
 * bits 31:24 of its double word, double word 0 of a beat in bits 31:0 of the data. A byte enable
 * per byte says which double words of a beat are there: those of the last beat may end early.
 */
#ifndef VFIO_DMA_RTL_H
#define VFIO_DMA_RTL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RTL_MOST_DWORDS 16

struct rtl_inputs {
    /* To the endpoint: a packet's beat. */
    uint32_t rx_data[RTL_MOST_DWORDS];
    uint64_t rx_be;
    uint8_t rx_valid, rx_first, rx_last;
    /* From the endpoint: its beat, or its message, is taken. */
    uint8_t tx_ready, msi_ready;
    uint8_t reset;
    /* What a vendor's core tells of configuration space. */
    uint8_t cfg_bus_master, cfg_msi_enable;
    uint16_t cfg_id, cfg_max_payload, cfg_max_read_request, cfg_msi_data;
    uint64_t cfg_msi_address;
};

struct rtl_outputs {
    uint32_t tx_data[RTL_MOST_DWORDS];
    uint64_t tx_be;
    uint8_t tx_valid, tx_first, tx_last;
    uint8_t rx_ready;
    uint8_t msi_valid, msi_vector;
    /* The hardware has work of its own: its clock must go on. */
    uint8_t busy;
};

/* Double words of a beat: 2, 4, 8 or 16. */
unsigned rtl_dwords(void);
/* Makes the hardware; writes waveforms (FST) to `trace` unless it is NULL. */
void *rtl_new(const char *trace);
/* Sets the pins and settles; then one rising edge of the clock. `outputs` are those from
 * before the edge: a beat goes over when valid and ready were both high. */
void rtl_cycle(void *hardware, const struct rtl_inputs *inputs, struct rtl_outputs *outputs);
void rtl_free(void *hardware);

#ifdef __cplusplus
}
#endif

#endif
