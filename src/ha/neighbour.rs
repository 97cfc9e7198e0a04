//! Neighbours that are tracked: asked once a second whether they are there, as ARP and ND ask (RFC 826, RFC 4861
//! section 7.3).

use std::net::IpAddr;
use std::time::Duration;

use crate::neighbours::{RETRANSMIT, SOLICITATIONS};
use crate::time::Nanos;

/// When it is looked for an answer: long after one has come on any link, and soon enough for whoever waits.
const LOOK: Duration = Duration::from_millis(50);

/// A neighbour: interface slot and address.
pub type Key = (u16, IpAddr);

/// How a neighbour is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// By the MAC address that is known.
    Unicast,
    /// Whoever has the address now: it may have moved.
    Everybody,
}

#[derive(Clone, Debug)]
struct Watch {
    key: Key,
    is_there: bool,
    /// When it was asked last.
    asked: Option<Nanos>,
    /// It has been looked for the answer.
    has_looked: bool,
    /// Questions in a row that were not answered in their second.
    unanswered: u32,
}

impl Watch {
    fn due(&self, now: Nanos) -> Nanos {
        self.asked.map_or(now, |asked| asked.plus(if self.has_looked { RETRANSMIT } else { LOOK }))
    }
}

/// The neighbours of a node that are tracked. None is there until it has answered.
#[derive(Clone, Debug, Default)]
pub struct Watcher(Vec<Watch>);

impl Watcher {
    /// Watches these from now on, each once. Those that it watches already go on as they are.
    pub fn set(&mut self, keys: &[Key]) {
        let old = std::mem::take(&mut self.0);
        for key in keys.iter().filter(|key| !old.iter().any(|watch| watch.key == **key)) {
            self.0.push(Watch { key: *key, is_there: false, asked: None, has_looked: false, unanswered: 0 });
        }
        self.0.extend(old.into_iter().filter(|watch| keys.contains(&watch.key)));
    }

    /// Does what is due. `confirmed`: when a neighbour was heard last; `ask`: to be asked. True: somebody has come or
    /// gone.
    pub fn poll(
        &mut self,
        now: Nanos,
        confirmed: impl Fn(Key) -> Option<Nanos>,
        mut ask: impl FnMut(Key, Ask),
    ) -> bool {
        let mut is_news = false;
        for watch in self.0.iter_mut().filter(|watch| watch.due(now) <= now) {
            let was_there = watch.is_there;
            // Workers read the clock once a turn: an answer may be older than its question by that.
            let heard = confirmed(watch.key).map(|at| at.plus(LOOK));
            let answered = watch.asked.is_some_and(|asked| heard.is_some_and(|at| at >= asked));
            if answered {
                (watch.is_there, watch.unanswered) = (true, 0);
            }
            if watch.asked.is_some() && !watch.has_looked {
                watch.has_looked = true;
            } else {
                watch.unanswered += u32::from(watch.asked.is_some() && !answered);
                watch.is_there &= watch.unanswered < SOLICITATIONS;
                let how = if watch.is_there && watch.unanswered == 0 { Ask::Unicast } else { Ask::Everybody };
                ask(watch.key, how);
                (watch.asked, watch.has_looked) = (Some(now), false);
            }
            is_news |= watch.is_there != was_there;
        }
        is_news
    }

    /// When [`Watcher::poll`] has something to do.
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        self.0.iter().map(|watch| watch.due(now)).min()
    }

    /// Whether a neighbour is there; `None`: nobody watches it.
    pub fn is_there(&self, key: Key) -> Option<bool> {
        self.0.iter().find(|watch| watch.key == key).map(|watch| watch.is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something, and at which millisecond.
    type At<T> = (u64, T);

    /// What is asked and known of one neighbour, every 50 ms, that answers at once while `answers` says so.
    fn watch(answers: impl Fn(u64) -> bool, until_ms: u64) -> (Vec<At<Ask>>, Vec<At<bool>>) {
        let key = (3, IpAddr::from([192, 0, 2, 1]));
        let mut watcher = Watcher::default();
        watcher.set(&[key]);
        let (mut asked, mut news, mut confirmed) = (Vec::new(), Vec::new(), None);
        for ms in (0..=until_ms).step_by(50) {
            let now = Nanos::from_secs(9).plus(Duration::from_millis(ms));
            let mut heard = confirmed;
            let is_news = watcher.poll(
                now,
                |_| confirmed,
                |of, how| {
                    assert_eq!(of, key);
                    asked.push((ms, how));
                    if answers(ms) {
                        heard = Some(now);
                    }
                },
            );
            confirmed = heard;
            if is_news {
                news.push((ms, watcher.is_there(key) == Some(true)));
            }
            // A plan that says the same changes nothing.
            watcher.set(&[key]);
        }
        (asked, news)
    }

    #[test]
    fn who_answers_is_there_and_who_does_not_three_times_is_not() {
        use Ask::{Everybody, Unicast};
        let (asked, news) = watch(|ms| (1000..3000).contains(&ms) || ms >= 8000, 9000);
        // Asked every second and looked for 50 ms later.
        let times: Vec<u64> = asked.iter().map(|(ms, _)| *ms).collect();
        assert_eq!(times, [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000]);
        let how: Vec<Ask> = asked.iter().map(|(_, how)| *how).collect();
        assert_eq!(how[..5], [Everybody, Everybody, Unicast, Unicast, Everybody]);
        assert_eq!(how[9], Unicast);
        assert_eq!(news, [(1050, true), (6000, false), (8050, true)]);
    }
}
