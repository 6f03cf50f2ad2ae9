//! The monitor's end: one JSON line with the processor, the reason and its registers, then the machine stops.
use core::fmt;

use super::lp;
use crate::{cpu, report};

/// Reports `reason` and stops this processor; the others stop at their next exit.
pub fn stop(reason: fmt::Arguments<'_>) -> ! {
    super::world::declare_dead();
    match lp::current() {
        Some(lp) => {
            let s = &lp.vmcb.save;
            let g = &lp.gprs.0;
            report::last_line(
                "panic",
                format_args!(
                    r#""lp":{},"reason":"{}","exit":"{:#x}","info1":"{:#x}","info2":"{:#x}","rip":"{:#x}","cs":"{:#x}","rsp":"{:#x}","rflags":"{:#x}","cr0":"{:#x}","cr2":"{:#x}","cr3":"{:#x}","cr4":"{:#x}","efer":"{:#x}","rax":"{:#x}","rcx":"{:#x}","rdx":"{:#x}","rbx":"{:#x}","rbp":"{:#x}","rsi":"{:#x}","rdi":"{:#x}""#,
                    lp.number,
                    Reason(reason),
                    lp.vmcb.exit_code,
                    lp.vmcb.exit_info1,
                    lp.vmcb.exit_info2,
                    s.rip,
                    s.cs.selector,
                    s.rsp,
                    s.rflags,
                    s.cr0,
                    s.cr2,
                    s.cr3,
                    s.cr4,
                    s.efer,
                    g[0],
                    g[1],
                    g[2],
                    g[3],
                    g[5],
                    g[6],
                    g[7],
                ),
            );
        }
        None => report::last_line("panic", format_args!(r#""reason":"{}""#, Reason(reason))),
    }
    cpu::stop()
}

/// A reason inside a JSON string.
struct Reason<'a>(fmt::Arguments<'a>);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                fmt::Display::fmt(&report::Escaped(text), self.0)
            }
        }
        fmt::write(&mut Escape(f), self.0)
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => stop(format_args!(
            "{} at {}:{}",
            info.message(),
            at.file(),
            at.line()
        )),
        None => stop(format_args!("{}", info.message())),
    }
}
