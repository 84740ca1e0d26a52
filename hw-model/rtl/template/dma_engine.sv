// A DMA engine of one channel: it fetches a list of descriptors from memory and copies what each
// of them names.
//
// It is an example to start from (docs/bring-your-verilog.md): the pins are those that the
// harness drives (rtl.h), the packets those of PCI Express (Base Specification 3.0, chapter 2).
//
// Registers in BAR0, 32 bits each:
//   0x00 ID        reads 0x444d4131
//   0x04 CONTROL   write 1: start; reads 1 while it runs
//   0x08 LIST      address of the first descriptor, low half: a multiple of 32
//   0x0c LIST      high half
//   0x10 COUNT     descriptors of the list
//   0x14 DONE      descriptors that are done, since the start
//   0x18 STATUS    bit 0: finished; bit 1: a read was refused; write 1 to clear
// A descriptor is 32 bytes: source, target (64 bits each), length in bytes (32 bits), and zeros.
// Addresses and lengths are multiples of 16. At the end it sends its interrupt message.
//
// The bus has 4 double words. A read asks for up to 64 bytes and stays inside of 64: no packet
// crosses 4 KiB, no completion is cut, and one buffer of 64 bytes is enough.

`default_nettype none

module dma_engine (
    input  wire         clk,
    input  wire         rst,
    // Packets to the engine.
    input  wire         rx_valid,
    output wire         rx_ready,
    input  wire         rx_first,
    input  wire         rx_last,
    input  wire [127:0] rx_data,
    input  wire [15:0]  rx_be,
    // Packets from it.
    output reg          tx_valid,
    input  wire         tx_ready,
    output reg          tx_first,
    output reg          tx_last,
    output reg  [127:0] tx_data,
    output reg  [15:0]  tx_be,
    // What the core tells of configuration space.
    input  wire [15:0]  cfg_id,
    input  wire [15:0]  cfg_max_payload,
    input  wire [15:0]  cfg_max_read_request,
    input  wire [63:0]  cfg_msi_address,
    input  wire [15:0]  cfg_msi_data
);

    localparam [31:0] ID = 32'h444d4131;

    // ------------------------------------------------------------------- registers
    reg [63:0] list;
    reg [31:0] count, done;
    reg        running, finished, refused, start;

    // ------------------------------------------------------------------- packets that come in
    // Header of the packet in hand: double words 0 to 2, in the order of the wire.
    wire [31:0] dw0 = rx_data[31:0], dw1 = rx_data[63:32], dw2 = rx_data[95:64];
    wire [31:0] dw3 = rx_data[127:96];
    wire        is_write = dw0[30] && dw0[28:24] == 5'b00000;
    wire        is_read = !dw0[30] && dw0[28:24] == 5'b00000;
    wire        is_completion = dw0[28:24] == 5'b01010;

    // Data is big endian on the pins: byte 0 in bits 31:24 of its double word.
    function automatic [31:0] swap(input [31:0] value);
        swap = {value[7:0], value[15:8], value[23:16], value[31:24]};
    endfunction

    wire [31:0] written = swap(dw3);

    // A register read that waits for its answer.
    reg        answer;
    reg [31:0] answer_value;
    reg [15:0] answer_requester;
    reg [7:0]  answer_tag;
    reg [6:0]  answer_low;

    // Completion data: 16 double words, of which `filled` are there.
    reg [31:0] buffer [0:15];
    reg [4:0]  filled;
    reg        in_completion;
    reg        arrived, bad;

    // The next packet waits while an answer does: there is room for one.
    assign rx_ready = !answer;
    wire take = rx_valid && rx_ready;

    function automatic [31:0] read_register(input [4:0] number);
        case (number)
            5'h0: read_register = ID;
            5'h1: read_register = {31'b0, running || start};
            5'h2: read_register = list[31:0];
            5'h3: read_register = list[63:32];
            5'h4: read_register = count;
            5'h5: read_register = done;
            5'h6: read_register = {30'b0, refused, finished};
            default: read_register = 32'b0;
        endcase
    endfunction

    integer n;
    always @(posedge clk) begin
        start   <= 1'b0;
        arrived <= 1'b0;
        if (take) begin
            if (rx_first) begin
                in_completion <= is_completion && !rx_last;
                if (is_write) begin
                    case (dw2[6:2])
                        5'h1: start <= written == 32'd1 && !running;
                        5'h2: list[31:0] <= written;
                        5'h3: list[63:32] <= written;
                        5'h4: count <= written;
                        5'h6: begin
                            if (written[0]) finished <= 1'b0;
                            if (written[1]) refused <= 1'b0;
                        end
                        default: ;
                    endcase
                end
                if (is_read) begin
                    answer           <= 1'b1;
                    answer_value     <= read_register(dw2[6:2]);
                    answer_requester <= dw1[31:16];
                    answer_tag       <= dw1[15:8];
                    answer_low       <= dw2[6:0];
                end
                if (is_completion) begin
                    // Completer status in bits 15:13: 0 is success.
                    bad       <= dw1[15:13] != 3'b0;
                    buffer[0] <= dw3;
                    filled    <= 5'd1;
                    arrived   <= rx_last;
                end
            end else if (in_completion) begin
                for (n = 0; n < 4; n = n + 1)
                    if (rx_be[4*n]) buffer[filled[3:0] + n[3:0]] <= rx_data[32*n +: 32];
                filled  <= filled + 5'd4;
                arrived <= rx_last;
                if (rx_last) in_completion <= 1'b0;
            end
        end
        if (answer && answer_taken) answer <= 1'b0;
        if (set_finished) finished <= 1'b1;
        if (set_refused) refused <= 1'b1;
        if (rst) begin
            answer <= 1'b0;
            in_completion <= 1'b0;
            {finished, refused, start, arrived, bad} <= 5'b0;
            {list, count} <= 96'b0;
            filled <= 5'b0;
        end
    end

    // ------------------------------------------------------------------- the engine
    localparam [2:0] IDLE = 0, FETCH = 1, DESCRIPTOR = 2, READ = 3, DATA = 4, WRITE = 5, NEXT = 6,
                     MESSAGE = 7;
    reg [2:0]  state;
    reg [63:0] source, target, entry;
    reg [31:0] left;
    // Double words of the piece in hand: up to the next multiple of 64 on both sides.
    reg [4:0]  piece;
    reg [4:0]  beat;
    reg        sent, set_finished, set_refused, answer_taken;

    wire [6:0] to_source = 7'd64 - {1'b0, source[5:0]};
    wire [6:0] to_target = 7'd64 - {1'b0, target[5:0]};
    wire [6:0] to_both = to_source < to_target ? to_source : to_target;
    wire [6:0] bytes = left < {25'b0, to_both} ? left[6:0] : to_both;
    wire       tx_free = !tx_valid || tx_ready;

    // A request's header; one of 4 double words only above 4 GiB.
    function automatic [127:0] header(
        input write, input [63:2] address, input [4:0] dwords, input [15:0] id
    );
        reg wide;
        reg [31:0] first, second;
        begin
            wide   = address[63:32] != 32'b0;
            first  = {1'b0, write, wide, 5'b0, 14'b0, 5'b0, dwords};
            // The last byte enables are 0 for one double word.
            second = {id, 8'h01, dwords == 5'd1 ? 4'h0 : 4'hf, 4'hf};
            header = wide ? {address[31:2], 2'b0, address[63:32], second, first}
                          : {32'b0, address[31:2], 2'b0, second, first};
        end
    endfunction

    // Data that a write still has to send, from double word `beat` on; a header of three leaves
    // room for one in the first beat.
    wire       wide_target = target[63:32] != 32'b0;
    wire [4:0] remaining = piece - beat;

    integer m;
    always @(posedge clk) begin
        set_finished <= 1'b0;
        set_refused  <= 1'b0;
        answer_taken <= 1'b0;
        if (tx_ready) tx_valid <= 1'b0;

        // Answers go before requests, between packets.
        if (answer && !answer_taken && tx_free && state != WRITE) begin
            answer_taken <= 1'b1;
            tx_valid     <= 1'b1;
            {tx_first, tx_last} <= 2'b11;
            tx_be        <= 16'hffff;
            tx_data      <= {swap(answer_value),
                             answer_requester, answer_tag, 1'b0, answer_low,
                             cfg_id, 4'b0, 12'd4,
                             32'h4a000001};
        end else begin
            case (state)
                IDLE: if (start) begin
                    running <= 1'b1;
                    entry   <= list;
                    done    <= 32'b0;
                    state   <= count == 32'b0 ? MESSAGE : FETCH;
                end
                FETCH: if (tx_free) begin
                    request(entry[63:2], 5'd8);
                    state <= DESCRIPTOR;
                end
                DESCRIPTOR: if (arrived) begin
                    source <= {swap(buffer[1]), swap(buffer[0])};
                    target <= {swap(buffer[3]), swap(buffer[2])};
                    left   <= swap(buffer[4]);
                    entry  <= entry + 64'd32;
                    state  <= bad ? MESSAGE : READ;
                    set_refused <= bad;
                end
                READ: if (left == 32'b0) begin
                    state <= NEXT;
                end else if (tx_free) begin
                    request(source[63:2], bytes[6:2]);
                    piece <= bytes[6:2];
                    beat  <= 5'd0;
                    sent  <= 1'b0;
                    state <= DATA;
                end
                DATA: if (arrived) begin
                    state <= bad ? MESSAGE : WRITE;
                    set_refused <= bad;
                end
                WRITE: if (tx_free) begin
                    tx_valid <= 1'b1;
                    tx_first <= !sent;
                    sent     <= 1'b1;
                    if (!sent) begin
                        tx_data <= header(1'b1, target[63:2], piece, cfg_id);
                        tx_be   <= 16'hffff;
                        tx_last <= 1'b0;
                        if (!wide_target) begin
                            tx_data[127:96] <= buffer[0];
                            beat    <= 5'd1;
                            tx_last <= piece == 5'd1;
                        end
                    end else begin
                        for (m = 0; m < 4; m = m + 1) begin
                            tx_data[32*m +: 32] <= buffer[beat[3:0] + m[3:0]];
                            tx_be[4*m +: 4]     <= m[4:0] < remaining ? 4'hf : 4'h0;
                        end
                        beat    <= beat + 5'd4;
                        tx_last <= remaining <= 5'd4;
                        if (remaining <= 5'd4) begin
                            source <= source + {57'b0, piece, 2'b0};
                            target <= target + {57'b0, piece, 2'b0};
                            left   <= left - {25'b0, piece, 2'b0};
                            state  <= READ;
                        end
                    end
                end
                NEXT: begin
                    done  <= done + 32'd1;
                    state <= done + 32'd1 == count ? MESSAGE : FETCH;
                end
                MESSAGE: if (tx_free) begin
                    // Behind all data: writes stay in order.
                    running      <= 1'b0;
                    set_finished <= 1'b1;
                    tx_valid     <= 1'b1;
                    {tx_first, tx_last} <= 2'b11;
                    tx_be        <= 16'hffff;
                    tx_data      <= header(1'b1, cfg_msi_address[63:2], 5'd1, cfg_id);
                    tx_data[127:96] <= swap({16'b0, cfg_msi_data});
                    state        <= IDLE;
                end
                default: state <= IDLE;
            endcase
        end
        if (rst) begin
            state <= IDLE;
            running <= 1'b0;
            {tx_valid, tx_first, tx_last} <= 3'b0;
            {set_finished, set_refused, answer_taken} <= 3'b0;
            done <= 32'b0;
        end
    end

    // Sends a read request.
    task automatic request(input [63:2] address, input [4:0] dwords);
        begin
            tx_valid <= 1'b1;
            {tx_first, tx_last} <= 2'b11;
            tx_data  <= header(1'b0, address, dwords, cfg_id);
            tx_be    <= address[63:32] != 32'b0 ? 16'hffff : 16'h0fff;
        end
    endtask

    // Not needed: requests never exceed 64 bytes, which both sizes always allow.
    wire unused = &{1'b0, cfg_max_payload, cfg_max_read_request, rx_be, dw0, dw1[7:0], dw2[31:7], bytes[1:0],
                    cfg_msi_address[1:0]};

endmodule

`default_nettype wire
