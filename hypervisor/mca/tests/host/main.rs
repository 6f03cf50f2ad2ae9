//! Machine checks on a CPU of plain data.

mod books;
mod checks;
mod cpu;
mod nmi;
