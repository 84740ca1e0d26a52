// The process that simulates an endpoint: packets over a socket (standard input), cycles inside.
//
// Each message is double words, little endian, the first of which is how many follow.
//   reset:  [n, 0, cycles]
//   run:    [n, 1, cycles, after_read, requests_below, quiet, credit_reads, credit_posted,
//            credit_posted_per_cycle, id, bus_master | msi << 1, max_payload, max_read_request,
//            msi_address (2), msi_data, packets, then for each:
//            flags (1: completion, 2: ends a read), due (2), dwords, ...]
//   answer: [n, now (2), requests, completions, quiet, busy, events, then for each:
//            kind (0 packet, 1 packet without end, 2 message), cycle (2), dwords, ...]
// Standard output of the hardware ($display) goes to standard error.

#include "rtl.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

namespace {

// The longest packet: 1024 double words of data, a header of 4, a digest.
constexpr std::size_t LONGEST = 1029;
constexpr uint32_t MOST_EVENTS = 256;
// Packets that the core buffers for lack of credits.
constexpr std::size_t MOST_HELD = 32;

struct Packet {
    uint64_t due = 0;
    uint64_t order = 0;
    bool ends_read = false;
    std::vector<uint32_t> words;
};

void die(const char *what) {
    std::fprintf(stderr, "harness: %s: %s\n", what, std::strerror(errno));
    std::exit(1);
}

// The host answers within some microseconds mostly: to look again for so long costs less than to
// sleep and be woken, and when idle, nothing.
constexpr auto LOOKING = std::chrono::microseconds(50);

// Bytes that have come, and those of them that were not taken.
class Input {
  public:
    // Takes exactly so many bytes; false when the other side has gone.
    bool take(void *data, std::size_t len) {
        auto *at = static_cast<char *>(data);
        while (len != 0) {
            if (taken_ == have_ && !fill()) return false;
            const std::size_t here = std::min(len, have_ - taken_);
            std::memcpy(at, bytes_ + taken_, here);
            taken_ += here;
            at += here;
            len -= here;
        }
        return true;
    }

  private:
    bool fill() {
        const auto begin = std::chrono::steady_clock::now();
        int flags = MSG_DONTWAIT;
        for (;;) {
            const ssize_t got = recv(0, bytes_, sizeof bytes_, flags);
            if (got == 0) return false;
            if (got > 0) {
                taken_ = 0;
                have_ = static_cast<std::size_t>(got);
                return true;
            }
            if (errno == EINTR) continue;
            if (errno != EAGAIN) die("reading");
            if (std::chrono::steady_clock::now() - begin < LOOKING) {
                sched_yield();
            } else {
                flags = 0;
            }
        }
    }

    char bytes_[1 << 16];
    std::size_t taken_ = 0, have_ = 0;
};

void send(const std::vector<uint32_t> &words) {
    const auto *at = reinterpret_cast<const char *>(words.data());
    std::size_t len = 4 * words.size();
    while (len != 0) {
        const ssize_t put = write(0, at, len);
        if (put < 0) {
            if (errno == EINTR) continue;
            // The other side has gone: the next message is not there.
            if (errno == EPIPE) return;
            die("writing");
        }
        at += put;
        len -= static_cast<std::size_t>(put);
    }
}

class Link {
  public:
    explicit Link(const char *trace) : hardware_(rtl_new(trace)), width_(rtl_dwords()) {}
    ~Link() { rtl_free(hardware_); }

    void reset(uint32_t cycles) {
        requests_.clear();
        completions_.clear();
        sending_ = nullptr;
        current_.words.clear();
        packet_.clear();
        in_packet_ = endless_ = false;
        held_.clear();
        reads_ = 0;
        posted_ = 0;
        in_ = rtl_inputs{};
        in_.reset = 1;
        for (uint32_t n = 0; n < cycles; ++n) step();
        in_.reset = 0;
        quiet_ = 0;
    }

    void run(const uint32_t *message, std::size_t count) {
        std::size_t at = 0;
        auto next = [&]() -> uint32_t { return at < count ? message[at++] : (++at, 0); };
        auto next64 = [&]() -> uint64_t {
            const uint64_t low = next();
            return low | static_cast<uint64_t>(next()) << 32;
        };
        const uint32_t cycles = next(), after_read = next(), requests_below = next();
        const uint32_t quiet = next();
        credit_reads_ = next();
        credit_posted_ = next();
        posted_per_cycle_ = next();
        in_.cfg_id = static_cast<uint16_t>(next());
        const uint32_t flags = next();
        in_.cfg_bus_master = flags & 1;
        in_.cfg_msi_enable = flags >> 1 & 1;
        in_.cfg_max_payload = static_cast<uint16_t>(next());
        in_.cfg_max_read_request = static_cast<uint16_t>(next());
        in_.cfg_msi_address = next64();
        in_.cfg_msi_data = static_cast<uint16_t>(next());
        for (uint32_t packets = next(); packets != 0 && at < count; --packets) take(next, next64);

        answer_.assign(8, 0);
        events_ = 0;
        // Until the host must act: on an answer that is due, or to hand over more.
        uint64_t end = now_ + cycles;
        while (now_ < end && events_ < MOST_EVENTS) {
            if (requests_.size() < requests_below) break;
            const bool pending = !requests_.empty() || !completions_.empty() || sending_ != nullptr;
            if (quiet_ >= quiet && !pending && !busy_ && !in_packet_) break;
            read_seen_ = false;
            step();
            if (read_seen_ && now_ + after_read < end) end = now_ + after_read;
        }
        answer_[0] = static_cast<uint32_t>(answer_.size() - 1);
        answer_[1] = static_cast<uint32_t>(now_);
        answer_[2] = static_cast<uint32_t>(now_ >> 32);
        const bool request = sending_ == &requests_, completion = sending_ == &completions_;
        answer_[3] = static_cast<uint32_t>(requests_.size() + (request ? 1 : 0));
        answer_[4] = static_cast<uint32_t>(completions_.size() + (completion ? 1 : 0));
        answer_[5] = quiet_;
        answer_[6] = busy_ || in_packet_ ? 1 : 0;
        answer_[7] = events_;
        send(answer_);
    }

  private:
    template <typename Next, typename Next64> void take(Next &next, Next64 &next64) {
        const uint32_t flags = next();
        Packet packet;
        packet.due = next64();
        packet.order = order_++;
        packet.ends_read = (flags & 2) != 0;
        uint32_t dwords = next();
        if (dwords > LONGEST) {
            std::fprintf(stderr, "harness: a packet of %u double words\n", dwords);
            std::exit(1);
        }
        packet.words.reserve(dwords);
        while (dwords-- != 0) packet.words.push_back(next());
        if ((flags & 1) == 0) {
            requests_.push_back(std::move(packet));
            return;
        }
        auto place = completions_.end();
        while (place != completions_.begin() && (place - 1)->due > packet.due) --place;
        completions_.insert(place, std::move(packet));
    }

    // Chooses what goes to the endpoint next. Completions do not overtake requests that came
    // before them; otherwise both take turns.
    void choose() {
        while (!completions_.empty() && completions_.front().words.empty() &&
               completions_.front().due <= now_) {
            const bool ends_read = completions_.front().ends_read;
            completions_.pop_front();
            if (ends_read) read_ended();
        }
        const bool request = !requests_.empty() && requests_.front().due <= now_;
        bool completion = !completions_.empty() && completions_.front().due <= now_;
        if (completion && !requests_.empty() &&
            requests_.front().order < completions_.front().order) {
            completion = false;
        }
        if (!request && !completion) return;
        const bool first = request && (!completion || !requests_last_);
        requests_last_ = first;
        sending_ = first ? &requests_ : &completions_;
        current_ = std::move(sending_->front());
        sending_->pop_front();
        position_ = 0;
    }

    void step() {
        if (sending_ == nullptr && !in_.reset) choose();
        if (sending_ != nullptr) {
            const std::size_t left = current_.words.size() - position_;
            const std::size_t here = left < width_ ? left : width_;
            for (std::size_t n = 0; n < width_; ++n) {
                in_.rx_data[n] = n < here ? current_.words[position_ + n] : 0;
            }
            in_.rx_be = here == 16 ? ~UINT64_C(0) : (UINT64_C(1) << 4 * here) - 1;
            in_.rx_valid = 1;
            in_.rx_first = position_ == 0;
            in_.rx_last = left <= width_;
        } else {
            in_.rx_valid = 0;
            in_.rx_first = 0;
            in_.rx_last = 0;
        }
        in_.msi_ready = !in_.reset;
        // A packet begins only when the core's buffer has room for any.
        const bool posted_full = credit_posted_ != 0 && posted_ != 0 &&
                                 posted_ + in_.cfg_max_payload > credit_posted_;
        in_.tx_ready =
            !in_.reset && (in_packet_ || (held_.size() < MOST_HELD && !posted_full));
        rtl_cycle(hardware_, &in_, &out_);
        ++now_;
        if (in_.reset) return;
        posted_ -= posted_ < posted_per_cycle_ ? posted_ : posted_per_cycle_;
        busy_ = out_.busy != 0;
        bool active = false;
        if (in_.rx_valid && out_.rx_ready) {
            active = true;
            position_ += width_;
            if (in_.rx_last) {
                const bool ends_read = sending_ == &completions_ && current_.ends_read;
                sending_ = nullptr;
                if (ends_read) read_ended();
            }
        }
        if (out_.tx_valid && in_.tx_ready) {
            active = true;
            beat();
        }
        if (out_.msi_valid && in_.msi_ready) {
            active = true;
            event(2, 1);
            answer_.push_back(out_.msi_vector);
        }
        quiet_ = active ? 0 : quiet_ + 1;
    }

    void beat() {
        in_packet_ = true;
        for (unsigned n = 0; n < width_; ++n) {
            if ((out_.tx_be >> 4 * n & 0xf) != 0) packet_.push_back(out_.tx_data[n]);
        }
        if (packet_.size() > LONGEST + RTL_MOST_DWORDS) {
            endless_ = true;
            packet_.clear();
        }
        if (!out_.tx_last) return;
        in_packet_ = false;
        if (endless_) {
            event(1, 0);
        } else if (!packet_.empty()) {
            const bool carries = (packet_[0] >> 30 & 1) != 0;
            const uint32_t type = packet_[0] >> 24 & 0x1f;
            const bool is_read = !carries && type != 0x0a;
            if (is_read && credit_reads_ != 0 && reads_ >= credit_reads_) {
                held_.push_back(packet_);
            } else {
                if (carries && type == 0) posted_ += 4 * static_cast<uint32_t>(packet_.size());
                sent(packet_, is_read);
            }
        }
        endless_ = false;
        packet_.clear();
    }

    void sent(const std::vector<uint32_t> &packet, bool is_read) {
        if (is_read) {
            ++reads_;
            read_seen_ = true;
        }
        event(0, static_cast<uint32_t>(packet.size()));
        answer_.insert(answer_.end(), packet.begin(), packet.end());
    }

    // A read was answered: one that the core holds for lack of a credit may go.
    void read_ended() {
        if (reads_ != 0) --reads_;
        if (held_.empty() || (credit_reads_ != 0 && reads_ >= credit_reads_)) return;
        sent(held_.front(), true);
        held_.pop_front();
    }

    void event(uint32_t kind, uint32_t words) {
        ++events_;
        answer_.insert(answer_.end(), {kind, static_cast<uint32_t>(now_),
                                       static_cast<uint32_t>(now_ >> 32), words});
    }

    void *hardware_;
    unsigned width_;
    rtl_inputs in_{};
    rtl_outputs out_{};
    std::deque<Packet> requests_, completions_;
    std::deque<Packet> *sending_ = nullptr;
    Packet current_;
    std::size_t position_ = 0;
    bool requests_last_ = false;
    std::vector<uint32_t> packet_;
    // Reads for which the root complex has no credit: others pass them, as in a core's buffer.
    std::deque<std::vector<uint32_t>> held_;
    bool in_packet_ = false, endless_ = false, read_seen_ = false, busy_ = false;
    uint32_t credit_reads_ = 0, credit_posted_ = 0, posted_per_cycle_ = 0;
    uint32_t reads_ = 0, posted_ = 0;
    uint32_t quiet_ = 0, events_ = 0;
    uint64_t now_ = 0, order_ = 0;
    std::vector<uint32_t> answer_;
};

} // namespace

int main() {
    // What the hardware prints must not mix with messages.
    if (dup2(2, 1) < 0) die("dup2");
    std::signal(SIGPIPE, SIG_IGN);
    const char *trace = std::getenv("VFIO_DMA_TRACE");
    Link link(trace != nullptr && *trace != '\0' ? trace : nullptr);
    static Input input;
    std::vector<uint32_t> message;
    for (;;) {
        uint32_t count = 0;
        if (!input.take(&count, 4)) return 0;
        if (count == 0 || count > 1u << 20) {
            std::fprintf(stderr, "harness: a message of %u double words\n", count);
            return 1;
        }
        message.resize(count);
        if (!input.take(message.data(), 4 * count)) return 0;
        switch (message[0]) {
        case 0:
            link.reset(count > 1 ? message[1] : 1);
            send({1, 0});
            break;
        case 1:
            link.run(message.data() + 1, count - 1);
            break;
        default:
            std::fprintf(stderr, "harness: message %u is not known\n", message[0]);
            return 1;
        }
    }
}
