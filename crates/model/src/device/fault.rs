//! What goes wrong on a device, read off the texts of the tensor library and of drivers.
//!
//! Burn opens devices and runs kernels in worker threads. A failure there is a panic of that thread, or text inside an error
//! of the next read; neither has a type that says what to do. [`DeviceFault`] is that type, and [`guard`] returns it where the
//! failure surfaces as a panic.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

/// What failed on a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceFault {
    /// No memory is left for an allocation.
    #[error("out of memory on the device{}", describe_memory(*requested, *held, *free))]
    OutOfMemory {
        /// Bytes of the allocation.
        requested: Option<u64>,
        /// Bytes that this process holds there.
        held: Option<u64>,
        /// Bytes that nobody holds, as the driver reports them.
        free: Option<u64>,
    },
    /// A tensor larger than a buffer of this device can be, however much memory is free.
    #[error("a tensor of {bytes} bytes is larger than one buffer of this device can be")]
    TooLarge {
        /// Bytes of the tensor.
        bytes: u64,
    },
    /// An operation needs more of something than the device has: workgroups, shared memory, bindings.
    #[error("an operation exceeds a limit of this device: {reason}")]
    Limit {
        /// The driver's words.
        reason: String,
    },
    /// The device is gone: reset, removed, or its driver changed under the process.
    #[error("the device was lost: {reason}")]
    Lost {
        /// The driver's words.
        reason: String,
    },
    /// A kernel did what it must not, such as reading outside of its buffers.
    #[error("a kernel crashed on the device: {reason}")]
    KernelCrash {
        /// The driver's words.
        reason: String,
    },
    /// A kernel ran longer than the system allows on a device that also serves a display.
    #[error("a kernel was stopped by the system's watchdog, as the device also serves a display: {reason}")]
    Watchdog {
        /// The driver's words.
        reason: String,
    },
    /// The device reports broken memory or a broken link.
    #[error("the device reports a hardware error: {reason}")]
    Hardware {
        /// The driver's words.
        reason: String,
    },
    /// Another process has the device for itself.
    #[error("the device is in use by another process: {reason}")]
    Busy {
        /// The driver's words.
        reason: String,
    },
    /// A library of the driver or toolkit is not found.
    #[error(
        "the library {library} cannot be loaded; needed: {library} where the system looks for libraries (LD_LIBRARY_PATH)"
    )]
    MissingLibrary {
        /// Its name, such as `libnvrtc.so`.
        library: String,
    },
    /// A library is older than this binary needs.
    #[error("the driver's library lacks {symbol}; needed: a newer driver")]
    OldLibrary {
        /// The missing function.
        symbol: String,
    },
    /// Driver and toolkit do not fit together, or the driver is too old.
    #[error(
        "driver and libraries do not fit together: {reason}; needed: an NVIDIA driver 580 or later, and NVRTC of CUDA 13"
    )]
    Versions {
        /// The driver's words.
        reason: String,
    },
    /// The headers that kernels are compiled with are not found.
    #[error(
        "the CUDA headers are not found: {reason}; needed: CUDA_PATH, a directory with include/cuda_fp16.h"
    )]
    MissingHeaders {
        /// The compiler's words.
        reason: String,
    },
    /// The driver answers, and refuses to begin.
    #[error("the driver cannot be started: {reason}")]
    Driver {
        /// The driver's words.
        reason: String,
    },
    /// A kernel does not compile for this device.
    #[error("a kernel cannot be compiled for this device: {reason}")]
    Compile {
        /// The compiler's words.
        reason: String,
    },
    /// The tensor library failed in a way that is not known here.
    #[error("{reason}")]
    Other {
        /// Its words.
        reason: String,
    },
}

/// `: 12.0 MB more needed, 900.0 MB held by this process, 3.1 MB free`, of what is known.
fn describe_memory(requested: Option<u64>, held: Option<u64>, free: Option<u64>) -> String {
    let parts = [(requested, "more needed"), (held, "held by this process"), (free, "free")];
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let known = parts.iter().filter_map(|(bytes, label)| Some((megabytes((*bytes)?), label)));
    let text: Vec<String> = known.map(|(bytes, label)| format!("{bytes:.1} MB {label}")).collect();
    if text.is_empty() { String::new() } else { format!(": {}", text.join(", ")) }
}

/// Makes a fault of a text that has its sign.
type Make = fn(&str) -> DeviceFault;

/// Signs by which a fault is known, in texts of cubecl 0.11, cudarc 0.19 and wgpu 30. The first match counts: causes come before
/// what follows from them.
const SIGNS: [(&[&str], Make); 15] = [
    (&["ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE"], |text| DeviceFault::Hardware { reason: reason(text) }),
    (&["CUDA_ERROR_LAUNCH_TIMEOUT"], |text| DeviceFault::Watchdog { reason: reason(text) }),
    (
        &[
            "CUDA_ERROR_ILLEGAL_",
            "CUDA_ERROR_MISALIGNED_",
            "CUDA_ERROR_INVALID_PC",
            "CUDA_ERROR_LAUNCH_FAILED",
            "CUDA_ERROR_HARDWARE_STACK",
            "CUDA_ERROR_ASSERT",
        ],
        |text| DeviceFault::KernelCrash { reason: reason(text) },
    ),
    (
        &[
            "out of device memory",
            "CUDA_ERROR_OUT_OF_MEMORY",
            "out-of-memory error",
            "Not enough memory left",
            "Out of Memory",
            "ERROR_OUT_OF_DEVICE_MEMORY",
            "ERROR_OUT_OF_HOST_MEMORY",
        ],
        |text| DeviceFault::OutOfMemory {
            requested: number_after(text, "allocating "),
            held: None,
            free: None,
        },
    ),
    (&["can't allocate buffer of size: "], |text| DeviceFault::TooLarge {
        bytes: number_after(text, "can't allocate buffer of size: ").unwrap_or(0),
    }),
    (&["Unable to dynamically load the \"", "failed to open lib"], |text| DeviceFault::MissingLibrary {
        library: missing_library(text),
    }),
    (&["Missing symbol "], |text| DeviceFault::OldLibrary { symbol: word_after(text, "Missing symbol ") }),
    (&["CUDA installation not found", "cannot open source file"], |text| DeviceFault::MissingHeaders {
        reason: reason(text),
    }),
    (
        &[
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "CUDA_ERROR_COMPAT_NOT_SUPPORTED",
            "CUDA_ERROR_STUB_LIBRARY",
            "CUDA_ERROR_NO_BINARY_FOR_GPU",
            "gpu-architecture",
        ],
        |text| DeviceFault::Versions { reason: reason(text) },
    ),
    (&["CUDA_ERROR_DEVICE_UNAVAILABLE"], |text| DeviceFault::Busy { reason: reason(text) }),
    (
        &[
            "device was lost",
            "device is lost",
            "DeviceLost",
            "device is poisoned",
            "device was poisoned",
            "CUDA_ERROR_UNKNOWN",
            "CUDA_ERROR_SYSTEM_NOT_READY",
            "CUDA_ERROR_CONTEXT_IS_DESTROYED",
            "CUDA_ERROR_CONTAINED",
            "CUDA_ERROR_MPS_",
            "CUDA_ERROR_DEINITIALIZED",
        ],
        |text| DeviceFault::Lost { reason: reason(text) },
    ),
    (
        &[
            "CUDA_ERROR_NO_DEVICE",
            "CUDA_ERROR_NOT_INITIALIZED",
            "CUDA_ERROR_INVALID_DEVICE",
            "CUDA_ERROR_OPERATING_SYSTEM",
            "CUDA_ERROR_SYSTEM_",
            "AdapterUnavailable",
            "No adapter available",
            "Unable to acquire wgpu device",
            "Unable to request a wgpu device",
        ],
        |text| DeviceFault::Driver { reason: reason(text) },
    ),
    (
        &[
            "Too many resources were requested",
            "dispatch group size",
            "CubeCountTooLarge",
            "greater than the maximum buffer size",
            "buffer_binding_size",
        ],
        |text| DeviceFault::Limit { reason: reason(text) },
    ),
    (&["compilation error", "Unable to load the PTX"], |text| DeviceFault::Compile { reason: reason(text) }),
    (&["wgpu error: ", "CUDA_ERROR_"], |text| DeviceFault::Other { reason: reason(text) }),
];

/// Texts that say no more than that a worker thread of a device failed earlier.
const CONSEQUENCES: [&str; 4] =
    ["RecvError", "torn down before it could say", "channel disconnected", "on device runner thread"];

impl DeviceFault {
    /// The fault that a text of the tensor library or a driver speaks of; none if it speaks of another thing.
    pub fn from_text(text: &str) -> Option<Self> {
        let find = |text: &str| {
            let row = SIGNS.iter().find(|(signs, _)| signs.iter().any(|sign| text.contains(sign)));
            row.map(|(_, make)| make(text))
        };
        if let Some(fault) = find(text) {
            return Some(fault);
        }
        if !CONSEQUENCES.iter().any(|sign| text.contains(sign)) {
            return None;
        }
        // The worker's own words, if it left any.
        let cause = WORKER_PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = cause.as_deref().and_then(find);
        Some(known.unwrap_or_else(|| {
            let reason = cause.as_deref().map_or_else(|| "its thread ended".to_owned(), reason);
            Self::Other { reason: format!("the tensor library failed on the device: {reason}") }
        }))
    }

    /// The fault of an error of the tensor library.
    pub(super) fn from_error(text: &str) -> Self {
        Self::from_text(text).unwrap_or_else(|| Self::Other { reason: reason(text) })
    }

    /// The fault in the payload of a panic.
    pub fn from_panic(payload: &(dyn Any + Send)) -> Option<Self> {
        let text = panic_text(payload)?;
        let of_worker = || {
            let noted = WORKER_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
            noted.as_deref() == Some(text)
        };
        Self::from_text(text).or_else(|| {
            of_worker().then(|| Self::Other {
                reason: format!("the tensor library failed on the device: {}", reason(text)),
            })
        })
    }
}

/// The message of a panic.
pub fn panic_text(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// Last panic of a worker thread of a device.
static WORKER_PANIC: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    /// How many [`guard`]s this thread is in.
    static GUARDS: Cell<usize> = const { Cell::new(0) };
}

/// Runs `task`; a panic that a device caused is returned as its fault, any other goes on.
///
/// A program that ends at the first panic asks [`is_handled`] in its panic hook.
///
/// # Errors
///
/// When a device failed. What the task was changing may be half changed.
pub fn guard<T>(task: impl FnOnce() -> T) -> Result<T, DeviceFault> {
    GUARDS.set(GUARDS.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(task));
    GUARDS.set(GUARDS.get() - 1);
    done.or_else(|payload| match DeviceFault::from_panic(&*payload) {
        Some(fault) => Err(fault),
        None => resume_unwind(payload),
    })
}

/// Whether a panic, from inside of its hook, is one that need not end the program: [`guard`] returns it as a fault, or it
/// happened in a worker thread of a device, where the tensor library catches it and reports it at the next read.
pub fn is_handled(payload: &(dyn Any + Send)) -> bool {
    if is_worker_thread() {
        let text = panic_text(payload).unwrap_or("a panic without a message").to_owned();
        *WORKER_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        return true;
    }
    GUARDS.get() > 0 && DeviceFault::from_panic(payload).is_some()
}

/// Whether this is a thread of cubecl, which names them `DSU-0-0` and `DSD-0-0`.
fn is_worker_thread() -> bool {
    let thread = std::thread::current();
    thread.name().is_some_and(|name| name.starts_with("DSU-") || name.starts_with("DSD-"))
}

/// Longest reason that is shown.
const LONGEST_REASON: usize = 300;

/// A text on one line, without backtrace and kernel source.
fn reason(text: &str) -> String {
    let end = ["\nBacktrace", "\n[Source]", "\n   0: ", "Backtrace:", "<disabled>"]
        .iter()
        .filter_map(|sign| text.find(sign))
        .min()
        .unwrap_or(text.len());
    let words: Vec<&str> = text[..end].split_whitespace().collect();
    let line = words.join(" ").replace("DriverError(", "(");
    match line.char_indices().nth(LONGEST_REASON) {
        Some((at, _)) => format!("{} …", &line[..at]),
        None => line,
    }
}

fn number_after(text: &str, label: &str) -> Option<u64> {
    let rest = &text[text.find(label)? + label.len()..];
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

/// The word after `label`, up to a space or quote.
fn word_after(text: &str, label: &str) -> String {
    let rest = text.split_once(label).map_or("", |(_, rest)| rest);
    rest.split(['"', ' ', '\n', ':', ',']).next().unwrap_or_default().to_owned()
}

/// `libnvrtc.so` of cudarc's or NVRTC's words.
fn missing_library(text: &str) -> String {
    match text.contains("dynamically load the \"") {
        true => format!("lib{}.so", word_after(text, "dynamically load the \"")),
        false => word_after(text, "failed to open ").trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts as the libraries write them, and what they mean.
    #[test]
    fn texts_of_libraries_and_drivers_become_faults() {
        let shown = |text: &str| DeviceFault::from_text(text).map(|fault| fault.to_string());
        let table = [
            (
                "An error happened during execution\nCaused by:\n  The bytes were never written (failure #3, still claiming 2 \
                 buffer(s))\nCaused by:\n  An IO error happened\nCaused by:\n  out of device memory allocating 12000000 \
                 bytes\n   0: a::b\n",
                "out of memory on the device: 12.0 MB more needed",
            ),
            (
                "can't allocate buffer of size: 224395264\n<disabled>",
                "a tensor of 224395264 bytes is larger than one buffer of this device can be",
            ),
            ("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", "out of memory on the device"),
            (
                "Unable to dynamically load the \"nvrtc\" shared library - searched for library names: [\"libnvrtc.so\"]",
                "the library libnvrtc.so cannot be loaded; needed: libnvrtc.so where the system looks for libraries \
                 (LD_LIBRARY_PATH)",
            ),
            (
                "nvrtc: error: failed to open libnvrtc-builtins.so.13.0.\n Make sure",
                "the library libnvrtc-builtins.so.13.0 cannot be loaded; needed: libnvrtc-builtins.so.13.0 where the system \
                 looks for libraries (LD_LIBRARY_PATH)",
            ),
            (
                "Missing symbol cuGetProcAddress_v2: libcuda.so: undefined symbol",
                "the driver's library lacks cuGetProcAddress_v2; needed: a newer driver",
            ),
            (
                "The device is poisoned\nCaused by:\n  Unknown: driver reset\nBacktrace:\n0: x",
                "the device was lost: The device is poisoned Caused by: Unknown: driver reset",
            ),
            (
                "The device is poisoned\nCaused by:\n  CUDA_ERROR_ILLEGAL_ADDRESS\nBacktrace:\n0: x",
                "a kernel crashed on the device: The device is poisoned Caused by: CUDA_ERROR_ILLEGAL_ADDRESS",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(shown(text).as_deref(), Some(expected));
        }
        assert_eq!(shown("attempt to divide by zero"), None);
    }

    #[test]
    fn a_fault_of_a_worker_thread_is_told_where_its_caller_fails() {
        let worker = std::thread::Builder::new().name("DSD-0-0".to_owned());
        let payload: Box<dyn Any + Send> = Box::new("wgpu error: Out of Memory".to_owned());
        let noted = worker.spawn(move || is_handled(&*payload)).unwrap().join().unwrap();
        assert!(noted);

        let failed =
            guard(|| -> () { resume_unwind(Box::new("called `Result::unwrap()`: RecvError".to_owned())) });

        assert_eq!(failed, Err(DeviceFault::OutOfMemory { requested: None, held: None, free: None }));
    }

    #[test]
    fn a_panic_that_is_no_fault_of_a_device_goes_on() {
        let caught = catch_unwind(|| guard(|| -> () { resume_unwind(Box::new("index out of bounds")) }));

        assert_eq!(panic_text(&*caught.unwrap_err()), Some("index out of bounds"));
        assert!(!is_handled(&"out of device memory"), "outside of a guard");
    }

    #[test]
    fn memory_is_told_as_far_as_it_is_known() {
        let fault =
            |held, free| DeviceFault::OutOfMemory { requested: Some(2_500_000), held, free }.to_string();

        assert_eq!(fault(None, None), "out of memory on the device: 2.5 MB more needed");
        assert_eq!(
            fault(Some(1_000_000_000), Some(0)),
            "out of memory on the device: 2.5 MB more needed, 1000.0 MB held by this process, 0.0 MB free"
        );
    }
}
