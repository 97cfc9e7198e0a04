//! The thread `health`: it runs the health checks beside the workers and says what has become of whom.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use crate::host::probe::{Event, Status, Target};
use crate::time::Nanos;
use crate::worker::{Node, Prober};

/// Verdicts that wait for their reader at most. Beyond it they are lost and counted: he takes the whole status then.
const MAX_EVENTS: usize = 65_536;

/// Longest sleep without a request: nothing depends on it.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What the thread is asked.
enum Request {
    Targets(Vec<Target>),
    Status(Sender<Vec<Status>>),
    Stop,
}

/// The health checks of a running gateway. The thread begins with the first target.
pub struct Health {
    node: Arc<Node>,
    started: Instant,
    seed: u64,
    requests: Sender<Request>,
    /// Until the thread has it.
    asked: Option<(Receiver<Request>, Sender<Event>, Notify)>,
    verdicts: Receiver<Event>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Called on the thread of the health checks when verdicts are there to be read.
type Notify = Box<dyn Fn() + Send>;

impl Health {
    /// Health checks without targets. `started` is when the clock of the workers began, `seed` begins the sequence
    /// numbers of connections. `notify` is called when there are verdicts to be read.
    pub fn new(node: &Arc<Node>, started: Instant, seed: u64, notify: impl Fn() + Send + 'static) -> Health {
        let (requests, asked) = unbounded();
        let (sender, verdicts) = bounded(MAX_EVENTS);
        Health {
            node: Arc::clone(node),
            started,
            seed,
            requests,
            asked: Some((asked, sender, Box::new(notify))),
            verdicts,
            lost: Arc::default(),
            thread: None,
        }
    }

    /// Checks these from now on, and no others. What is the same as before goes on as it was.
    pub fn set_targets(&mut self, targets: Vec<Target>) -> io::Result<()> {
        if self.thread.is_none() {
            if targets.is_empty() {
                return Ok(());
            }
            self.start()?;
        }
        self.ask(Request::Targets(targets));
        Ok(())
    }

    fn start(&mut self) -> io::Result<()> {
        let Some((asked, sender, notify)) = self.asked.take() else {
            return Err(io::Error::other("the thread of the health checks could not begin"));
        };
        let (node, started, lost) = (Arc::clone(&self.node), self.started, Arc::clone(&self.lost));
        let mut prober = Prober::new(&node, self.seed);
        let run = move || run(&node, &mut prober, &asked, &sender, &lost, &notify, started);
        self.thread = Some(std::thread::Builder::new().name("health".into()).spawn(run)?);
        Ok(())
    }

    /// Verdicts that have changed, in the order in which they did.
    pub fn verdicts(&self) -> &Receiver<Event> {
        &self.verdicts
    }

    /// Verdicts lost since the last call, because nobody read them. If there are any, [`Health::status`] has what
    /// counts.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// What is known of all targets, in no order; empty if the thread does not answer within `limit`.
    pub fn status(&self, limit: Duration) -> Vec<Status> {
        if self.thread.is_none() {
            return Vec::new();
        }
        let (sender, answer) = bounded(1);
        self.ask(Request::Status(sender));
        answer.recv_timeout(limit).unwrap_or_default()
    }

    /// Ends the thread.
    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.ask(Request::Stop);
            let _ = thread.join();
        }
    }

    fn ask(&self, request: Request) {
        let _ = self.requests.send(request);
        self.node.probes.wake();
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(
    node: &Node,
    prober: &mut Prober,
    asked: &Receiver<Request>,
    verdicts: &Sender<Event>,
    lost: &AtomicU64,
    notify: &Notify,
    started: Instant,
) {
    let clock = || Nanos(started.elapsed().as_nanos() as u64);
    let mut events = Vec::new();
    loop {
        for request in asked.try_iter() {
            match request {
                Request::Targets(targets) => prober.set_targets(targets, clock()),
                Request::Status(answer) => {
                    let _ = answer.send(prober.status().collect());
                }
                Request::Stop => return,
            }
        }
        let worked = prober.turn(clock(), &mut events);
        if !events.is_empty() {
            let unread = events.drain(..).filter(|event| verdicts.try_send(*event).is_err()).count();
            lost.fetch_add(unread as u64, Ordering::Relaxed);
            notify();
        }
        if !worked {
            // A request wakes us also if it came since we looked: its wake-up stays until we sleep.
            node.probes.sleep(prober.next_deadline().since(clock()).min(LONGEST_SLEEP));
        }
    }
}
