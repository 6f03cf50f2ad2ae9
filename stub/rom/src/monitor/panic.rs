//! Panics of the monitor: reports the processor, the reason and its registers in one JSON line, then stops the machine.

use core::fmt;

use stub_rom::lost::{Fault, Own};

use super::lp::{self, Lp};
use super::vmcb::Save;
use crate::{cpu, report};

/// Reports `reason` and stops this processor. The others stop at their next exit.
pub fn stop(reason: fmt::Arguments<'_>) -> ! {
    super::world::declare_dead();
    let reason = Reason(reason);
    match lp::current() {
        Some(lp) => {
            report::last_line(
                "panic",
                format_args!(r#""reason":"{reason}",{}"#, State(lp)),
            );
        }
        None => report::last_line("panic", format_args!(r#""reason":"{reason}""#)),
    }
    cpu::stop()
}

/// Stops if the nested page fault at `pa` that left `save` was the monitor's own, taken when it exited a guest. The
/// guest's state is lost then. Every handler of nested page faults calls it first.
///
/// TCG 7.2 does this to CPU 0 now and then, while another CPU loads x87 state (see [`super::td`]'s extended state).
pub fn check_for_lost_guest(number: u32, save: &Save, pa: u64) {
    let world = super::world::get();
    let own = Own {
        cr3: world.cr3,
        seamrr: world.seamrr,
        limits: world.limits,
    };
    let fault = Fault {
        lp: number,
        address: pa,
        cr3: save.cr3,
        rip: save.rip,
        gdt_limit: save.gdtr.limit,
        idt_limit: save.idtr.limit,
    };
    if own.has_taken(&fault) {
        stop(format_args!(
            "QEMU has left CPU 0 in nested paging at the end of a guest (it does so seldom, see docs/emulation.md): start again"
        ));
    }
}

/// A processor with its last exit and the software's registers, formatted as members of a JSON object.
pub struct State<'a>(pub &'a Lp);

impl fmt::Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(lp) = self;
        write!(f, r#""lp":{}"#, lp.number)?;
        let (v, s, g) = (&lp.vmcb, &lp.vmcb.save, &lp.gprs.0);
        for (name, value) in [
            ("exit", v.exit_code),
            ("info1", v.exit_info1),
            ("info2", v.exit_info2),
            ("cs", s.cs.selector.into()),
            ("rip", s.rip),
            ("rsp", s.rsp),
            ("rflags", s.rflags),
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("efer", s.efer),
            ("rax", g[0]),
            ("rcx", g[1]),
            ("rdx", g[2]),
            ("rbx", g[3]),
            ("rbp", g[5]),
            ("rsi", g[6]),
            ("rdi", g[7]),
        ] {
            write!(f, r#","{name}":"{value:#x}""#)?;
        }
        Ok(())
    }
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
