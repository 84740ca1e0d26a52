//! What a controller says of a command: status codes by name (NVM Express Base 1.4, 4.6.1).

use std::fmt;

/// The status field of a completion entry, without its phase bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

/// A status by its type and code: what the specification calls it, in a few words.
#[rustfmt::skip]
const NAMES: &[(u8, u8, &str)] = &[
    (0, 0x00, "success"),
    (0, 0x01, "invalid command opcode"),
    (0, 0x02, "invalid field in command"),
    (0, 0x03, "command id conflict"),
    (0, 0x04, "data transfer error"),
    (0, 0x05, "aborted due to power loss"),
    (0, 0x06, "internal error"),
    (0, 0x07, "abort requested"),
    (0, 0x08, "aborted due to deletion of its queue"),
    (0, 0x09, "failed fused command"),
    (0, 0x0a, "missing fused command"),
    (0, 0x0b, "invalid namespace or format"),
    (0, 0x0c, "command sequence error"),
    (0, 0x0d, "invalid SGL segment descriptor"),
    (0, 0x0e, "invalid number of SGL descriptors"),
    (0, 0x0f, "data SGL length invalid"),
    (0, 0x10, "metadata SGL length invalid"),
    (0, 0x11, "SGL descriptor type invalid"),
    (0, 0x12, "invalid use of controller memory buffer"),
    (0, 0x13, "PRP offset invalid"),
    (0, 0x14, "atomic write unit exceeded"),
    (0, 0x15, "operation denied"),
    (0, 0x16, "SGL offset invalid"),
    (0, 0x18, "host identifier inconsistent"),
    (0, 0x19, "keep alive timer expired"),
    (0, 0x1a, "keep alive timeout invalid"),
    (0, 0x1b, "aborted due to preempt and abort"),
    (0, 0x1c, "sanitize failed"),
    (0, 0x1d, "sanitize in progress"),
    (0, 0x1e, "SGL data block granularity invalid"),
    (0, 0x1f, "command not supported for queue in CMB"),
    (0, 0x20, "namespace is write protected"),
    (0, 0x21, "command interrupted"),
    (0, 0x22, "transient transport error"),
    (0, 0x80, "LBA out of range"),
    (0, 0x81, "capacity exceeded"),
    (0, 0x82, "namespace not ready"),
    (0, 0x83, "reservation conflict"),
    (0, 0x84, "format in progress"),
    (1, 0x00, "completion queue invalid"),
    (1, 0x01, "invalid queue identifier"),
    (1, 0x02, "invalid queue size"),
    (1, 0x03, "abort command limit exceeded"),
    (1, 0x05, "asynchronous event request limit exceeded"),
    (1, 0x06, "invalid firmware slot"),
    (1, 0x08, "invalid interrupt vector"),
    (1, 0x09, "invalid log page"),
    (1, 0x0a, "invalid format"),
    (1, 0x0c, "invalid queue deletion"),
    (1, 0x0d, "feature identifier not saveable"),
    (1, 0x0e, "feature not changeable"),
    (1, 0x0f, "feature not namespace specific"),
    (1, 0x80, "conflicting attributes"),
    (1, 0x81, "invalid protection information"),
    (1, 0x82, "attempted write to read only range"),
    (1, 0x83, "command size limit exceeded"),
    (2, 0x80, "write fault"),
    (2, 0x81, "unrecovered read error"),
    (2, 0x82, "guard check error"),
    (2, 0x83, "application tag check error"),
    (2, 0x84, "reference tag check error"),
    (2, 0x85, "compare failure"),
    (2, 0x86, "access denied"),
    (2, 0x87, "deallocated or unwritten block"),
    (3, 0x00, "internal path error"),
    (3, 0x01, "asymmetric access persistent loss"),
    (3, 0x02, "asymmetric access inaccessible"),
    (3, 0x03, "asymmetric access transition"),
];

impl Status {
    /// Of bits 31:17 of a completion entry's last doubleword, in bits 14:0.
    pub(super) fn from_field(field: u16) -> Status {
        Status(field & 0x7fff)
    }

    /// Whether the command ended well.
    #[inline]
    #[must_use]
    pub fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Status code type: 0 generic, 1 of the command, 2 of media and data, 3 of the path, 7 of
    /// the vendor.
    #[must_use]
    pub fn code_type(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Status code within its type.
    #[must_use]
    pub fn code(self) -> u8 {
        self.0 as u8
    }

    /// Do Not Retry: the same command would fail again.
    #[must_use]
    pub fn do_not_retry(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// More: the error log page says more.
    #[must_use]
    pub fn more(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// What the specification calls it; `None` for one that it does not define.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let of = (self.code_type(), self.code());
        NAMES.iter().find(|(kind, code, _)| (*kind, *code) == of).map(|(.., name)| *name)
    }

    /// Whether this is the status of that type and code.
    #[must_use]
    pub fn is(self, code_type: u8, code: u8) -> bool {
        (self.code_type(), self.code()) == (code_type, code)
    }

    /// Whether the compare command found other bytes (type 2, code 85h).
    #[must_use]
    pub fn is_compare_failure(self) -> bool {
        self.is(2, 0x85)
    }

    /// Whether the command was given up because it, its queue or its power went (type 0, codes
    /// 05h, 07h and 08h).
    #[must_use]
    pub fn is_abort(self) -> bool {
        self.code_type() == 0 && matches!(self.code(), 0x05 | 0x07 | 0x08)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.code_type(), self.name()) {
            (_, Some(name)) => name,
            (7, None) => "vendor specific status",
            _ => "status that is not defined",
        };
        let (kind, code) = (self.code_type(), self.code());
        write!(f, "{name} (type {kind}, code {code:#04x}")?;
        if self.do_not_retry() {
            f.write_str(", do not retry")?;
        }
        if self.more() {
            f.write_str(", more in the error log")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        // Bits 31:17 of the last doubleword, moved down by 17.
        let status = Status::from_field(0x4281);
        assert_eq!((status.code_type(), status.code()), (2, 0x81));
        assert!(status.do_not_retry() && !status.more() && !status.is_success());
        let text = "unrecovered read error (type 2, code 0x81, do not retry)";
        assert_eq!(status.to_string(), text);
        assert!(Status::from_field(0x2002).to_string().ends_with("more in the error log)"));
        assert!(Status::from_field(0x1800).is_success(), "a retry delay is no failure");
        assert!(Status::from_field(0x0285).is_compare_failure());
        assert!(Status::from_field(0x0007).is_abort() && !Status::from_field(0x0107).is_abort());
        assert!(Status::from_field(0x0701).to_string().starts_with("vendor specific"));
        assert!(Status::from_field(0x00ff).to_string().starts_with("status that is not"));
    }

    #[test]
    fn no_code_has_two_names() {
        for (i, (kind, code, _)) in NAMES.iter().enumerate() {
            assert!(NAMES[..i].iter().all(|other| (other.0, other.1) != (*kind, *code)));
        }
    }
}
