//! The `softgate` binary: parses its arguments and does what they say.
//!
//! The commands are listed in [`softgate::cli::Command`].

use std::process::ExitCode;

use softgate::cli::Cli;

fn main() -> ExitCode {
    abort_on_panic();
    Cli::from_arguments().run()
}

/// A worker that panicked must not leave a gateway behind that looks alive: the process ends at once, whatever the
/// thread; the kernel detaches its XDP program, and whoever supervises it starts it again.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
