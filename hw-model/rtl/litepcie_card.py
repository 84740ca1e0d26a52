"""Generates an endpoint with LitePCIe's DMA: Verilog, csr.csv, csr.json, csr.h and soc.h.

    python3 litepcie_card.py DIRECTORY [--channels N] [--synchronizer] [--data-width 128]

The PHY is a stub: its two packet streams are pins of the top module, as rtl.h has them, in
place of a vendor's core.
"""

import argparse
import functools
import operator
import os

from migen import Cat, ClockDomain, If, Signal

from litex.build.generic_platform import GenericPlatform, Pins
from litex.gen import LiteXModule
from litex.soc.integration import export
from litex.soc.integration.soc_core import SoCMini
from litex.soc.interconnect import stream
from litex.soc.interconnect.csr import CSR, CSRStatus, CSRStorage

from litepcie.common import get_bar_mask, msi_layout, phy_layout
from litepcie.core import LitePCIeEndpoint, LitePCIeMSIMultiVector
from litepcie.frontend.dma import LitePCIeDMA
from litepcie.frontend.wishbone import LitePCIeWishboneMaster

BAR0_SIZE = 64 << 10


def pins(width):
    """The top module's pins."""
    one = [
        "clk", "rst",
        "rx_valid", "rx_ready", "rx_first", "rx_last",
        "tx_valid", "tx_ready", "tx_first", "tx_last",
        "msi_valid", "msi_ready", "busy",
    ]
    wide = {
        "rx_data": width, "rx_be": width // 8, "tx_data": width, "tx_be": width // 8,
        "msi_vector": 8, "cfg_id": 16, "cfg_max_payload": 16, "cfg_max_read_request": 16,
    }
    sizes = {**{name: 1 for name in one}, **wide}
    return [(name, 0, Pins(size)) for name, size in sizes.items()]


class StubPHY(LiteXModule):
    """A PHY whose packets go to pins."""

    endianness = "big"
    qword_aligned = False

    def __init__(self, platform, width):
        pin = platform.request
        self.data_width = width
        self.bar0_mask = get_bar_mask(BAR0_SIZE)
        self.id = Signal(16)
        self.max_payload_size = Signal(16)
        self.max_request_size = Signal(16)
        self.source = stream.Endpoint(phy_layout(width))
        self.sink = stream.Endpoint(phy_layout(width))
        self.msi = stream.Endpoint(msi_layout())
        # The gateware has buffers for requests of up to 512 bytes.
        most = 512
        payload, request = pin("cfg_max_payload"), pin("cfg_max_read_request")
        self.comb += [
            self.id.eq(pin("cfg_id")),
            If(payload > most, self.max_payload_size.eq(most)).Else(
                self.max_payload_size.eq(payload)
            ),
            If(request > most, self.max_request_size.eq(most)).Else(
                self.max_request_size.eq(request)
            ),
            self.source.valid.eq(pin("rx_valid")),
            pin("rx_ready").eq(self.source.ready),
            self.source.first.eq(pin("rx_first")),
            self.source.last.eq(pin("rx_last")),
            self.source.dat.eq(pin("rx_data")),
            self.source.be.eq(pin("rx_be")),
            pin("tx_valid").eq(self.sink.valid),
            self.sink.ready.eq(pin("tx_ready")),
            pin("tx_first").eq(self.sink.first),
            pin("tx_last").eq(self.sink.last),
            pin("tx_data").eq(self.sink.dat),
            pin("tx_be").eq(self.sink.be),
            pin("msi_valid").eq(self.msi.valid),
            self.msi.ready.eq(pin("msi_ready")),
            pin("msi_vector").eq(self.msi.dat),
        ]


class Clock(LiteXModule):
    def __init__(self, platform):
        self.cd_sys = ClockDomain()
        self.comb += [
            self.cd_sys.clk.eq(platform.request("clk")),
            self.cd_sys.rst.eq(platform.request("rst")),
        ]


class Ends(LiteXModule):
    """The other ends of a channel's streams: what a card's own logic would be.

    Words of 32 bits that count up go to memory while ``generate`` is set. What comes from memory
    is counted, in words of the bus, and summed: a turn to the left, then all words of 32 bits
    xored in. Writing ``clear`` makes both zero.
    """

    def __init__(self, dma, width):
        self.generate = CSRStorage()
        self.consumed = CSRStatus(32)
        self.checksum = CSRStatus(32)
        self.clear = CSR()
        lanes = width // 32
        count, consumed, checksum = Signal(32), Signal(32), Signal(32)
        data = dma.source.data
        words = [data[32 * n : 32 * (n + 1)] for n in range(lanes)]
        self.comb += [
            dma.sink.valid.eq(self.generate.storage),
            *[dma.sink.data[32 * n : 32 * (n + 1)].eq(count + n) for n in range(lanes)],
            dma.source.ready.eq(1),
            self.consumed.status.eq(consumed),
            self.checksum.status.eq(checksum),
        ]
        turned = Cat(checksum[31], checksum[:31])
        self.sync += [
            If(~self.generate.storage, count.eq(0)).Elif(dma.sink.ready, count.eq(count + lanes)),
            If(self.clear.re, consumed.eq(0), checksum.eq(0)).Elif(
                dma.source.valid,
                consumed.eq(consumed + 1),
                checksum.eq(functools.reduce(operator.xor, words, turned)),
            ),
        ]


class User(LiteXModule):
    """Registers of the card's own: the width of its bus, and a pulse for synchronizers."""

    def __init__(self, width):
        self.data_width = CSRStatus(16)
        self.pulse = CSR()
        self.comb += self.data_width.status.eq(width)


class Card(SoCMini):
    """CSRs in BAR0, DMA channels, message-signalled interrupts."""

    SoCMini.mem_map["csr"] = 0
    SoCMini.csr_map = {
        "ctrl": 0, "identifier_mem": 1, "pcie_msi": 2,
        **{f"pcie_dma{n}": 3 + n for n in range(8)},
        **{f"ends{n}": 11 + n for n in range(8)},
        "card": 19,
    }

    def __init__(self, platform, args):
        super().__init__(
            platform,
            clk_freq=int(125e6),
            csr_data_width=32,
            ident="LitePCIe under Verilator",
            ident_version=False,
        )
        self.crg = Clock(platform)
        self.pcie_phy = StubPHY(platform, args.data_width)
        self.pcie_endpoint = LitePCIeEndpoint(
            self.pcie_phy, endianness="big", address_width=64, max_pending_requests=args.tags
        )
        bridge = LitePCIeWishboneMaster(self.pcie_endpoint)
        self.submodules += bridge
        self.bus.add_master(master=bridge.wishbone)
        self.pcie_msi = LitePCIeMSIMultiVector(width=32)
        self.comb += self.pcie_msi.source.connect(self.pcie_phy.msi)
        self.card = User(args.data_width)
        irqs = []
        for n in range(args.channels):
            dma = LitePCIeDMA(
                self.pcie_phy,
                self.pcie_endpoint,
                address_width=64,
                with_loopback=True,
                with_synchronizer=args.synchronizer,
            )
            self.add_module(name=f"pcie_dma{n}", module=dma)
            self.add_module(name=f"ends{n}", module=Ends(dma, args.data_width))
            if args.synchronizer:
                self.comb += dma.synchronizer.pps.eq(self.card.pulse.re)
            # As LitePCIe's Linux driver names them.
            self.add_constant(f"PCIE_DMA{n}_WRITER_INTERRUPT", len(irqs))
            self.add_constant(f"PCIE_DMA{n}_READER_INTERRUPT", len(irqs) + 1)
            irqs += [dma.writer.irq, dma.reader.irq]
        self.add_constant("DMA_CHANNELS", args.channels)
        self.add_constant("DMA_ADDR_WIDTH", 64)
        self.comb += self.pcie_msi.irqs[: len(irqs)].eq(Cat(*irqs))
        self.comb += platform.request("busy").eq(0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--channels", type=int, default=1, choices=range(1, 9))
    parser.add_argument("--data-width", type=int, default=128, choices=[64, 128, 256, 512])
    parser.add_argument("--tags", type=int, default=4, choices=[2, 4, 8, 16])
    parser.add_argument("--synchronizer", action="store_true")
    args = parser.parse_args()
    platform = GenericPlatform("rtl", pins(args.data_width))
    card = Card(platform, args)
    card.finalize()
    os.makedirs(args.directory, exist_ok=True)
    # The files that memories begin with go to the current directory, and are read from there.
    os.chdir(args.directory)
    platform.get_verilog(card, name="litepcie").write("litepcie.v")
    # The map of registers, for this project's driver and for LitePCIe's own.
    files = {
        "csr.csv": export.get_csr_csv(card.csr_regions, card.constants, card.mem_regions),
        "csr.json": export.get_csr_json(card.csr_regions, card.constants, card.mem_regions),
        "csr.h": export.get_csr_header(
            card.csr_regions, card.constants, csr_base=0, with_access_functions=False
        ),
        "soc.h": export.get_soc_header(card.constants, with_access_functions=False),
    }
    for name, text in files.items():
        with open(name, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
