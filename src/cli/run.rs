//! `softgate run`: the gateway itself, in the foreground.

use std::io::{IsTerminal as _, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::beginning::{self, Beginning};
use super::report;
use crate::config::Name;
use crate::control::{Limits, Server};
use crate::gateway::{BackEnd, Gateway, Predecessor, StartError};
use crate::io::link::explain_bind_failure;
use crate::io::supervisor;

/// Runs the gateway in the foreground until SIGTERM or SIGINT
///
/// Then it hands over to the other node, if there is one, in at most some 12 seconds; at once if it is told again.
/// Needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK (root has them). Everything is detached
/// from the devices on exit.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The config
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Which [node.NAME] of the config this is; default: the one called as the host
    #[arg(long, value_name = "NAME")]
    pub node: Option<Name>,
    /// Keeps each commit in this folder, instead of `state_dir` of the config
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Begins with the config file, whatever was committed last
    #[arg(long)]
    pub from_file: bool,
    /// Begins with what was committed last, whatever the config file says
    #[arg(long, conflicts_with = "from_file")]
    pub from_revision: bool,
    /// Uses the crate `afxdp` instead of our own ring layer: no jumbo frames, little sleep while idle
    #[cfg(feature = "afxdp")]
    #[arg(long)]
    pub afxdp: bool,
    /// The process that takes another's place: started by that
    #[arg(long, hide = true)]
    pub take_over: bool,
    /// What is logged, for example `info` or `softgate=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", env = "SOFTGATE_LOG")]
    pub log: String,
}

/// Keys of the descriptors the control thread waits for.
const LINKS: usize = 0;
const SIGNALS: usize = 1;
const HEALTH: usize = 2;
const PATHS: usize = 3;
const PAIR: usize = 4;

/// Runs the command; `socket` instead of the config's if it was given.
pub fn run(args: &Args, socket: Option<PathBuf>) -> ExitCode {
    log_to_stderr(&args.log);
    let predecessor = match args.take_over.then(Predecessor::of_stdin).transpose() {
        Ok(predecessor) => predecessor,
        Err(error) => {
            eprintln!("softgate run: --take-over is for `softgate upgrade`: {error}");
            return ExitCode::from(2);
        }
    };
    let mut listener = predecessor.as_ref().and_then(|predecessor| predecessor.try_clone().ok());
    let mut say = |why: &str| {
        if let Some(listener) = &mut listener {
            let _ = listener.say(&format!("failed {why}"));
        }
    };
    let beginning = match beginning::find(args) {
        Ok(beginning) => beginning,
        Err(trouble) => {
            say("it cannot begin with the config or the revisions; the log says why");
            return report(Err(trouble));
        }
    };
    match serve(beginning, args, socket, predecessor) {
        Ok(code) => code,
        Err(error) => {
            say(&error);
            eprintln!("softgate run: {error}");
            ExitCode::from(2)
        }
    }
}

/// Logs to the standard error, in colours where that is a terminal.
pub(super) fn log_to_stderr(filter: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

#[cfg(feature = "afxdp")]
fn back_end(args: &Args) -> BackEnd {
    if args.afxdp {
        tracing::info!("back end: the crate afxdp");
        return BackEnd::Crate;
    }
    BackEnd::Own
}

#[cfg(not(feature = "afxdp"))]
fn back_end(_: &Args) -> BackEnd {
    BackEnd::Own
}

fn serve(
    beginning: Beginning,
    args: &Args,
    socket: Option<PathBuf>,
    predecessor: Option<Predecessor>,
) -> Result<ExitCode, String> {
    let Beginning { config, file_name, kept, node } = beginning;
    // The socket first: a second gateway with the same config ends here, before it touches a device.
    let path = socket.unwrap_or_else(|| config.control.socket.clone());
    let control = config.control.clone();
    let bind = || {
        let mut server = Server::bind(&path, control.group.as_deref(), Limits::default())
            .map_err(|error| error.to_string())?;
        if let Some(file) = &control.audit {
            server.audit(file.clone()).map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(server)
    };
    // Of the process before it is until that has left.
    let server = if predecessor.is_some() { None } else { Some(bind()?) };
    let (mut signals, tell) = UnixStream::pair().map_err(|error| format!("signals: {error}"))?;
    signals.set_nonblocking(true).map_err(|error| format!("signals: {error}"))?;
    for signal in [SIGTERM, SIGINT] {
        let tell = tell.try_clone().map_err(|error| format!("signals: {error}"))?;
        signal_hook::low_level::pipe::register(signal, tell).map_err(|error| format!("signals: {error}"))?;
    }
    let mut gateway = Gateway::start_after(config, &file_name, back_end(args), predecessor)
        .map_err(|error| explain(&error))?;
    let mut server = server.map_or_else(bind, Ok)?;
    gateway.is_node(node);
    match kept {
        Some((store, new)) => gateway.keep_revisions(store, new),
        None => gateway.number_revisions(),
    }
    let register = |server: &mut Server, fd, key| {
        server.register(fd, key).map_err(|error| format!("event loop: {error}"))
    };
    register(&mut server, gateway.watcher().as_raw_fd(), LINKS)?;
    register(&mut server, signals.as_raw_fd(), SIGNALS)?;
    register(&mut server, gateway.checks_descriptor(), HEALTH)?;
    register(&mut server, gateway.paths_descriptor(), PATHS)?;
    register(&mut server, gateway.pair_descriptor(), PAIR)?;
    supervisor::notify("READY=1");
    tracing::info!(socket = %path.display(), workers = ?gateway.worker_cpus(), "softgate ready");
    let mut is_told = false;
    loop {
        // The time-out is a safety net: everything that matters wakes the loop.
        let rest = gateway.rest(Duration::from_millis(500));
        let ready = server.poll(&mut gateway, Some(rest)).map_err(|error| format!("event loop: {error}"))?;
        if ready.contains(&SIGNALS) && signals.read(&mut [0; 16]).is_ok() {
            // Who cannot wait says so twice.
            if std::mem::replace(&mut is_told, true) {
                break;
            }
            gateway.leave();
        }
        gateway.tend_drain();
        gateway.tend_upgrade();
        if gateway.has_left() {
            break;
        }
        gateway.handle_links();
        gateway.handle_paths();
        gateway.handle_health();
        gateway.expire_members();
        gateway.tend_revisions();
        gateway.tend_pair();
        gateway.note_history();
    }
    drop(server);
    let leaked_frames = gateway.stop();
    tracing::info!(leaked_frames, "softgate stopped, devices are detached");
    Ok(ExitCode::from(u8::from(leaked_frames > 0)))
}

/// The error, and for a device what `doctor` says of it.
fn explain(error: &StartError) -> String {
    match error {
        StartError::Device { device, source, .. } => {
            format!("{error}\n{}", explain_bind_failure(device, &source.to_string()))
        }
        other => other.to_string(),
    }
}
