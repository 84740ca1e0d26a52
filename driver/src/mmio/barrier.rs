//! Barriers between memory and registers.

/// Keeps earlier stores to memory before the register write that follows.
#[inline]
pub(crate) fn before_write() {
    // x86 does not reorder a store to uncached memory with earlier stores
    // (Intel SDM vol. 3, 11.2.2): only the compiler must be held.
    #[cfg(target_arch = "x86_64")]
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    // SAFETY: a barrier touches no memory and no register of the program.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags))
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// Keeps later loads from memory behind the register read before.
#[inline]
pub(crate) fn after_read() {
    #[cfg(target_arch = "x86_64")]
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    // SAFETY: a barrier touches no memory and no register of the program.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags))
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// Keeps earlier stores to memory before the loads from memory that follow, as a device sees
/// both.
#[inline]
pub(crate) fn full() {
    #[cfg(not(target_arch = "aarch64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    // SAFETY: a barrier touches no memory and no register of the program.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("dmb osh", options(nostack, preserves_flags))
    };
}
