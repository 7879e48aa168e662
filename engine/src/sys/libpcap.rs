//! pcap-filter expressions, compiled by the libpcap of the machine.
//!
//! ```text
//! "tcp port 80" --pcap_compile--> bpf_program --copied--> Vec<BpfInsn>
//! ```
//!
//! The library is opened at the first use, so neither the build nor a run without an expression
//! needs it. Nothing of it stays alive after a call.
#![expect(unsafe_code, reason = "calls a C library that is opened at run time")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;

use crate::rpcap::BpfInsn;

/// Names under which distributions install it: upstream's, Debian's, the development link.
const SONAMES: [&str; 3] = ["libpcap.so.1", "libpcap.so.0.8", "libpcap.so"];

/// `PCAP_NETMASK_UNKNOWN`: only `ip broadcast` needs the mask.
pub const NETMASK_UNKNOWN: u32 = 0xffff_ffff;

/// Why an expression did not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// There is no usable libpcap here.
    #[error("a filter needs libpcap (Debian: libpcap0.8), which cannot be loaded: {0}")]
    NoLibrary(String),
    /// libpcap refuses the expression.
    #[error("{0}")]
    Syntax(String),
}

/// `struct bpf_program` of `pcap/bpf.h`.
#[repr(C)]
struct BpfProgram {
    len: u32,
    instructions: *mut CInsn,
}

/// `struct bpf_insn` of `pcap/bpf.h`.
#[repr(C)]
struct CInsn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

type OpenDead = unsafe extern "C" fn(c_int, c_int) -> *mut c_void;
type Compile =
    unsafe extern "C" fn(*mut c_void, *mut BpfProgram, *const c_char, c_int, u32) -> c_int;
type GetError = unsafe extern "C" fn(*mut c_void) -> *mut c_char;
type FreeCode = unsafe extern "C" fn(*mut BpfProgram);
type Close = unsafe extern "C" fn(*mut c_void);

/// The five functions; the library stays open for the life of the process.
struct Functions {
    open_dead: OpenDead,
    compile: Compile,
    get_error: GetError,
    free_code: FreeCode,
    close: Close,
    _library: Library,
}

impl Functions {
    fn load() -> Result<Self, String> {
        let mut reason = String::new();
        for soname in SONAMES {
            // SAFETY: libpcap's initialisers do nothing but set up their own data.
            match unsafe { Library::new(soname) } {
                Ok(library) => return Self::resolve(library).map_err(|error| error.to_string()),
                Err(error) if reason.is_empty() => reason = error.to_string(),
                Err(_) => {}
            }
        }
        Err(reason)
    }

    fn resolve(library: Library) -> Result<Self, libloading::Error> {
        // SAFETY: the type is the prototype of pcap_open_dead(3PCAP).
        let open_dead = unsafe { *library.get::<OpenDead>("pcap_open_dead")? };
        // SAFETY: the type is the prototype of pcap_compile(3PCAP).
        let compile = unsafe { *library.get::<Compile>("pcap_compile")? };
        // SAFETY: the type is the prototype of pcap_geterr(3PCAP).
        let get_error = unsafe { *library.get::<GetError>("pcap_geterr")? };
        // SAFETY: the type is the prototype of pcap_freecode(3PCAP).
        let free_code = unsafe { *library.get::<FreeCode>("pcap_freecode")? };
        // SAFETY: the type is the prototype of pcap_close(3PCAP).
        let close = unsafe { *library.get::<Close>("pcap_close")? };
        Ok(Self { open_dead, compile, get_error, free_code, close, _library: library })
    }
}

/// A handle of `pcap_open_dead`, closed on drop.
struct Handle<'a> {
    functions: &'a Functions,
    pcap: *mut c_void,
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        // SAFETY: `pcap` came from pcap_open_dead, is not null and is not used again.
        unsafe { (self.functions.close)(self.pcap) };
    }
}

/// Compiles `expression` for frames of `linktype` (a `DLT_` value). An accepted frame's answer is
/// `snaplen`. Any thread may call it; calls wait for each other, because older versions of
/// libpcap compile with global variables.
///
/// # Errors
///
/// What libpcap says of the expression, or that there is no libpcap.
pub fn compile(
    expression: &str,
    linktype: i32,
    snaplen: u32,
    optimize: bool,
    netmask: u32,
) -> Result<Vec<BpfInsn>, CompileError> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    let syntax = |text: &str| CompileError::Syntax(text.to_owned());
    let text =
        CString::new(expression).map_err(|_nul| syntax("the expression contains a zero byte"))?;
    let snaplen = c_int::try_from(snaplen).unwrap_or(c_int::MAX);
    let functions = FUNCTIONS
        .get_or_init(Functions::load)
        .as_ref()
        .map_err(|reason| CompileError::NoLibrary(reason.clone()))?;
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    // SAFETY: takes two numbers and gives a handle of its own, or null.
    let pcap = unsafe { (functions.open_dead)(linktype, snaplen) };
    if pcap.is_null() {
        return Err(syntax("libpcap has no memory"));
    }
    let handle = Handle { functions, pcap };
    let mut program = BpfProgram { len: 0, instructions: std::ptr::null_mut() };
    // SAFETY: the handle is open, `program` is ours to be filled, `text` ends in a zero byte.
    let result = unsafe {
        (functions.compile)(handle.pcap, &raw mut program, text.as_ptr(), optimize.into(), netmask)
    };
    if result != 0 {
        // SAFETY: the handle is open; the answer is a string inside it, copied before it closes.
        let text = unsafe { CStr::from_ptr((functions.get_error)(handle.pcap)) };
        return Err(syntax(&text.to_string_lossy()));
    }
    let copied = if program.instructions.is_null() {
        Vec::new()
    } else {
        // SAFETY: pcap_compile succeeded: `instructions` points at `len` of them until freecode.
        let compiled =
            unsafe { std::slice::from_raw_parts(program.instructions, program.len as usize) };
        let insn = |c: &CInsn| BpfInsn { code: c.code, jt: c.jt, jf: c.jf, k: c.k };
        compiled.iter().map(insn).collect()
    };
    // SAFETY: filled by pcap_compile above, not used after this.
    unsafe { (functions.free_code)(&raw mut program) };
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles, or says loudly that this machine cannot.
    fn compiled(expression: &str, linktype: i32) -> Option<Result<Vec<BpfInsn>, CompileError>> {
        match compile(expression, linktype, 96, true, NETMASK_UNKNOWN) {
            Err(CompileError::NoLibrary(reason)) => {
                eprintln!("SKIPPED: no libpcap on this machine: {reason}");
                None
            }
            result => Some(result),
        }
    }

    #[test]
    fn a_good_expression_becomes_instructions() {
        let Some(program) = compiled("ip", 1) else { return };
        let insn = |code, jt, jf, k| BpfInsn { code, jt, jf, k };
        assert_eq!(
            program.unwrap(),
            [insn(0x28, 0, 0, 12), insn(0x15, 0, 1, 0x800), insn(6, 0, 0, 96), insn(6, 0, 0, 0)]
        );
    }

    #[test]
    fn the_link_type_matters() {
        let Some(program) = compiled("ip", 113) else { return };
        assert_eq!(program.unwrap()[0].k, 14, "the protocol's place in LINUX_SLL");
    }

    #[test]
    fn a_bad_expression_says_why() {
        let Some(result) = compiled("tcp prot 80", 1) else { return };
        assert!(matches!(result, Err(CompileError::Syntax(text)) if text.contains("syntax error")));
        compile("ip\0", 1, 96, true, NETMASK_UNKNOWN).unwrap_err();
    }

    #[test]
    fn threads_may_compile_at_once() {
        let Some(expected) = compiled("tcp port 80 or udp port 53", 1) else { return };
        let expected = expected.unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let again = compiled("tcp port 80 or udp port 53", 1).unwrap().unwrap();
                        assert_eq!(again, expected);
                    }
                });
            }
        });
    }
}
