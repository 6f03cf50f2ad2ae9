//! The kinds of errors of operations on TDs, and the advice to the operator.

use alloc::{format, string::String};

use console::host::failure::Code;
use host::td::{error::Error, life::State};

/// The operation that the operator asked for; selects the sentence of an error.
#[derive(Clone, Copy)]
pub enum Wish {
    Create,
    Start,
    Pause,
    Resume,
    End,
    Retry,
    Shrink,
    Look,
    ShutDown,
    Forget,
    Attach,
}

/// Returns the kind of an error.
pub const fn code(error: &Error) -> Code {
    match error {
        Error::Unsupported(_)
        | Error::NoFile(_)
        | Error::EmptyFile(_)
        | Error::Room(_)
        | Error::Image(_)
        | Error::Hob(_)
        | Error::TooMuchMemory
        | Error::Init(_, Some(_)) => Code::Unsupported,
        Error::NoFrames { .. } | Error::NoHkid(_) | Error::NoHeap => Code::NoResources,
        Error::ShutDown => Code::Unavailable,
        Error::GuestEnded(_) | Error::EndStuck(_) | Error::State(_) => Code::WrongState,
        Error::Busy => Code::Busy,
        Error::Size { .. } => Code::InvalidArgument,
        Error::Stuck(_)
        | Error::Silent(_)
        | Error::Create(_)
        | Error::Seam(_)
        | Error::Init(_, None)
        | Error::Map(_)
        | Error::Vcpu(_)
        | Error::Runner(_)
        | Error::NotReleased(_)
        | Error::NotReclaimed(_) => Code::Failed,
    }
}

/// Says what to do when a TD's state rules out an operation.
pub fn advice(wish: Wish, state: State, is_stuck: bool, name: &str) -> String {
    match (wish, state) {
        (_, State::Building) => {
            format!("; wait until it is built, or \"td destroy {name}\" terminates it")
        }
        (_, State::Terminating | State::Teardown) if is_stuck => {
            format!(", and its termination got stuck; \"td retry {name}\" resumes the termination")
        }
        (_, State::Terminating) => {
            format!("; wait until its HKID is released; \"td show {name}\" shows any problem")
        }
        (Wish::Retry, State::Created | State::Reclaimed) => ", and nothing is stuck".into(),
        (Wish::Retry, State::Runnable | State::Paused) => {
            format!(", and is not terminating; \"td destroy {name}\" terminates it")
        }
        (Wish::Create, State::Runnable) => {
            format!(" already; \"td reset {name}\" builds it again")
        }
        (Wish::Create, State::Paused) => {
            format!(", so it is built; \"td start {name}\" starts it")
        }
        (_, State::Teardown) => {
            "; wait until its memory is reclaimed (\"reclaim\" shows the progress)".into()
        }
        (_, State::Created | State::Reclaimed) => {
            format!(", so it is not built; \"td start {name}\" builds it")
        }
        (Wish::Start | Wish::Resume, State::Runnable) => ", so it is running".into(),
        (Wish::ShutDown, State::Paused) => {
            format!("; \"td resume {name}\" lets it run, so that its guest can follow")
        }
        (Wish::Forget, State::Runnable | State::Paused) => {
            format!("; \"td destroy {name}\" terminates it")
        }
        (Wish::Attach, State::Runnable | State::Paused) => format!(
            ", and PCI functions are attached and detached while a TD is not built; \"td destroy {name}\" terminates it"
        ),
        (Wish::Pause, State::Paused) => {
            format!(" already; \"td resume {name}\" resumes it")
        }
        _ => String::new(),
    }
}
