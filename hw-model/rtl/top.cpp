// A module that Verilator has compiled, behind rtl.h.
//
// vtop.h, which the build writes, includes the module's class and names it Top.

#include "rtl.h"

#include <cstring>
#include <type_traits>

#include "verilated.h"
#ifdef RTL_TRACE
#include "verilated_fst_c.h"
#endif

#include "vtop.h"

// Pins that a module need not have.
#define OPTIONAL_INPUT(pin)                                                                        \
    template <typename T> auto put_##pin(T &top, uint64_t value, int) -> decltype((void)top.pin) { \
        top.pin = static_cast<std::remove_reference_t<decltype((top.pin))>>(value);                \
    }                                                                                              \
    template <typename T> void put_##pin(T &, uint64_t, long) {}
#define OPTIONAL_OUTPUT(pin)                                                                       \
    template <typename T> auto get_##pin(T &top, int) -> decltype((void)top.pin, uint8_t()) {      \
        return static_cast<uint8_t>(top.pin);                                                      \
    }                                                                                              \
    template <typename T> uint8_t get_##pin(T &, long) { return 0; }

namespace {

// A pin of any width, from and to double words.
void put(uint8_t &pin, const uint32_t *words) { pin = static_cast<uint8_t>(words[0]); }
void put(uint16_t &pin, const uint32_t *words) { pin = static_cast<uint16_t>(words[0]); }
void put(uint32_t &pin, const uint32_t *words) { pin = words[0]; }
void put(uint64_t &pin, const uint32_t *words) {
    pin = words[0] | static_cast<uint64_t>(words[1]) << 32;
}
template <std::size_t N> void put(VlWide<N> &pin, const uint32_t *words) {
    std::memcpy(pin.data(), words, 4 * N);
}
void get(uint32_t *words, const uint32_t &pin) { words[0] = pin; }
void get(uint32_t *words, const uint64_t &pin) {
    words[0] = static_cast<uint32_t>(pin);
    words[1] = static_cast<uint32_t>(pin >> 32);
}
template <std::size_t N> void get(uint32_t *words, const VlWide<N> &pin) {
    std::memcpy(words, pin.data(), 4 * N);
}
OPTIONAL_INPUT(msi_ready)
OPTIONAL_INPUT(cfg_bus_master)
OPTIONAL_INPUT(cfg_msi_enable)
OPTIONAL_INPUT(cfg_msi_address)
OPTIONAL_INPUT(cfg_msi_data)
OPTIONAL_OUTPUT(msi_valid)
OPTIONAL_OUTPUT(msi_vector)
OPTIONAL_OUTPUT(busy)

struct Hardware {
    VerilatedContext context;
    Top top;
#ifdef RTL_TRACE
    VerilatedFstC trace;
    bool traces = false;
#endif

    explicit Hardware(bool traced) : top(prepared(traced)) {}

    // Waveforms have to be asked for before the hardware is made.
    VerilatedContext *prepared(bool traced) {
        context.traceEverOn(traced);
        return &context;
    }
};

} // namespace

extern "C" unsigned rtl_dwords(void) {
    return static_cast<unsigned>(sizeof(Top::tx_data) / sizeof(uint32_t));
}

extern "C" void *rtl_new(const char *trace) {
    auto *hardware = new Hardware(trace != nullptr);
#ifdef RTL_TRACE
    if (trace != nullptr) {
        hardware->top.trace(&hardware->trace, 99);
        hardware->trace.open(trace);
        hardware->traces = true;
    }
#endif
    return hardware;
}

extern "C" void rtl_cycle(void *handle, const struct rtl_inputs *in, struct rtl_outputs *out) {
    auto &hardware = *static_cast<Hardware *>(handle);
    auto &top = hardware.top;
    top.rst = in->reset;
    put(top.rx_data, in->rx_data);
    const uint32_t be[2] = {static_cast<uint32_t>(in->rx_be), static_cast<uint32_t>(in->rx_be >> 32)};
    put(top.rx_be, be);
    top.rx_valid = in->rx_valid;
    top.rx_first = in->rx_first;
    top.rx_last = in->rx_last;
    top.tx_ready = in->tx_ready;
    top.cfg_id = in->cfg_id;
    top.cfg_max_payload = in->cfg_max_payload;
    top.cfg_max_read_request = in->cfg_max_read_request;
    put_msi_ready(top, in->msi_ready, 0);
    put_cfg_bus_master(top, in->cfg_bus_master, 0);
    put_cfg_msi_enable(top, in->cfg_msi_enable, 0);
    put_cfg_msi_address(top, in->cfg_msi_address, 0);
    put_cfg_msi_data(top, in->cfg_msi_data, 0);
    top.clk = 0;
    top.eval();
    get(out->tx_data, top.tx_data);
    out->tx_be = static_cast<uint64_t>(top.tx_be);
    out->tx_valid = top.tx_valid;
    out->tx_first = top.tx_first;
    out->tx_last = top.tx_last;
    out->rx_ready = top.rx_ready;
    out->msi_valid = get_msi_valid(top, 0);
    out->msi_vector = get_msi_vector(top, 0);
    out->busy = get_busy(top, 0);
#ifdef RTL_TRACE
    if (hardware.traces) hardware.trace.dump(hardware.context.time());
#endif
    hardware.context.timeInc(1);
    top.clk = 1;
    top.eval();
#ifdef RTL_TRACE
    if (hardware.traces) hardware.trace.dump(hardware.context.time());
#endif
    hardware.context.timeInc(1);
}

extern "C" void rtl_free(void *handle) {
    auto *hardware = static_cast<Hardware *>(handle);
#ifdef RTL_TRACE
    if (hardware->traces) hardware->trace.close();
#endif
    hardware->top.final();
    delete hardware;
}
