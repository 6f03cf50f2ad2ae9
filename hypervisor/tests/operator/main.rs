//! Tests of the console's commands against the host on an emulated module: the operator's view, and the errors.

mod advice;
mod answers;
mod console;
mod files;
mod functions;
#[path = "../../host/tests/td/kit.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod kit;
mod model;
mod operator;
#[path = "../../host/tests/rig/mod.rs"]
mod rig;
#[path = "../../../vcpu/tests/kit/script.rs"]
#[allow(dead_code, reason = "it has what the tests of vcpu need, too")]
mod script;
mod seam_bench;
mod shrink;
mod shutdown;

use rig::running::OUT_OF_LINES;
