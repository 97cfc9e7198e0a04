//! What would become of a session under other tables: the word of the function that workers judge it by after a commit
//! ([`judge`]), and why.

use crate::control::SessionFate;
use crate::flow::standing::Standing;
use crate::neighbours::{MAX_SLOTS, ip_of, is_v4_key};
use crate::packet::DropReason;
use crate::pipeline::judge::{self, Ends, Judged, Stop};
use crate::pipeline::{self, Decision};
use crate::tables::Tables;
use crate::tables::balance::BackendFate;
use crate::tables::compile::Compiler;
use crate::tables::policy::DEFAULT_RULE;

/// What becomes of a session.
#[derive(Clone, Copy, Debug)]
pub enum Foreseen {
    /// It ends by the tables in force.
    Ending,
    /// It stays as it is.
    Stays,
    /// It goes on with something that takes nothing new.
    Drains,
    /// It ends.
    Ends(Ends),
    /// Its next packet is decided as a first one.
    Again(Decision),
    /// It leaves by another way.
    Moves(Judged),
    /// It goes on under another rule.
    OtherRule(Judged),
    /// It goes on in spite of a rule.
    Kept(Judged),
}

impl Foreseen {
    /// By the tables that a commit would make; `now`: those in force.
    pub fn of(then: &Tables, now: &Tables, standing: &Standing) -> Foreseen {
        let kept =
            if drains(then, standing) && !drains(now, standing) { Foreseen::Drains } else { Foreseen::Stays };
        if judge::still_holds(then, standing) {
            return if standing.is_condemned() { Foreseen::Ending } else { kept };
        }
        let (record, upper) = (&standing.record, standing.tuple.protocol);
        match judge::judge(then, standing) {
            Ok(judged) if judged.kept && !standing.is_kept => Foreseen::Kept(judged),
            Ok(judged) if judged.leads_elsewhere(standing) || judged.leads_back_elsewhere(standing) => {
                Foreseen::Moves(judged)
            }
            Ok(_) if matches!(kept, Foreseen::Drains) => kept,
            Ok(judged) if judged.has_other_rule(standing) => Foreseen::OtherRule(judged),
            Ok(_) => kept,
            Err(Stop::Waits) => kept,
            Err(_) if standing.is_untouched => Foreseen::Stays,
            Err(_) if standing.is_condemned() => Foreseen::Ending,
            Err(_)
                if judge::backend_fate(then, record.backend(), standing.epoch, upper)
                    == BackendFate::Rehash =>
            {
                Foreseen::Again(pipeline::decide(then, &judge::question_of(standing), None, None))
            }
            Err(Stop::Ends(ends)) => Foreseen::Ends(ends),
        }
    }

    /// The same as commands call it.
    pub fn fate(&self) -> SessionFate {
        match self {
            Foreseen::Ending => SessionFate::Ending,
            Foreseen::Stays => SessionFate::Stays,
            Foreseen::Drains => SessionFate::Drains,
            Foreseen::Ends(Ends { reason: DropReason::NatPathChanged, .. }) => SessionFate::MappingLost,
            Foreseen::Again(Decision::Session(_)) => SessionFate::BackendChanged,
            Foreseen::Ends(_) | Foreseen::Again(_) => SessionFate::Dropped,
            Foreseen::Moves(_) => SessionFate::EgressChanged,
            Foreseen::OtherRule(_) => SessionFate::RuleChanged,
            Foreseen::Kept(_) => SessionFate::Kept,
        }
    }
}

/// True if a session uses something that takes nothing new: an outside address that is in no pool, a backend that is out of
/// service.
fn drains(tables: &Tables, standing: &Standing) -> bool {
    let Standing { record, new_src, reply_vrf, .. } = standing;
    let has_left =
        || is_v4_key(*new_src) && tables.policy.pool_of(*reply_vrf, (*new_src as u32).into()).is_none();
    record.mapping != 0 && has_left()
        || record.backend().is_some_and(|backend| !tables.backends.is_in_service(backend))
}

/// Why, or what would be otherwise, in the words of the config that would be in force. `then` has made those tables, `now`
/// those in force.
pub fn why(foreseen: &Foreseen, standing: &Standing, then: &Compiler, now: &Compiler) -> String {
    Words { then, now }.why(foreseen, standing)
}

struct Words<'a> {
    then: &'a Compiler,
    now: &'a Compiler,
}

impl Words<'_> {
    fn why(&self, foreseen: &Foreseen, standing: &Standing) -> String {
        let slots = &self.then.policy_slots;
        let backend = |slot: Option<u32>| {
            let name = slot.and_then(|slot| slots.backends.names().get(slot as usize));
            name.map_or("?", |name| name.strip_suffix("@default").unwrap_or(name)).to_owned()
        };
        match foreseen {
            Foreseen::Ending => String::from("it is not allowed by the config in force"),
            Foreseen::Stays => String::new(),
            Foreseen::Drains if standing.record.backend().is_some() => {
                format!("{} takes no new ones", backend(standing.record.backend()))
            }
            Foreseen::Drains => format!("{} is in no pool any more", ip_of(standing.new_src)),
            Foreseen::Ends(ends) => self.why_it_ends(ends, standing),
            Foreseen::Again(Decision::Session(allowed)) => match allowed.backend {
                Some(_) => {
                    format!("from {} to {}", backend(standing.record.backend()), backend(allowed.backend))
                }
                None => format!(
                    "its service is gone: from {} to {}",
                    backend(standing.record.backend()),
                    allowed.dst
                ),
            },
            Foreseen::Again(Decision::Drop(reason) | Decision::Refused(_, reason)) => {
                format!(
                    "{} fails, and no other takes it: {}",
                    backend(standing.record.backend()),
                    reason.name()
                )
            }
            Foreseen::Again(_) => {
                format!("{} fails, and no other takes it", backend(standing.record.backend()))
            }
            Foreseen::Kept(judged) if judged.allowed.ruling.rule == DEFAULT_RULE => {
                String::from("no rule allows it")
            }
            Foreseen::Kept(judged) => {
                let name = slots.rules.names().get(judged.allowed.ruling.rule as usize);
                format!("rule {} refuses it", name.map_or("?", String::as_str))
            }
            Foreseen::Moves(judged) => self.where_it_moves(judged, standing),
            Foreseen::OtherRule(judged) => {
                let rule = |slot: u32| slots.rules.names().get(slot as usize).map_or("?", String::as_str);
                let (record, allowed) = (&standing.record, &judged.allowed);
                if record.rule != allowed.ruling.rule {
                    return format!("rule {} instead of {}", rule(allowed.ruling.rule), rule(record.rule));
                }
                let nat =
                    |slot: u16| slots.nat_rules.names().get(usize::from(slot)).map_or("?", String::as_str);
                format!("NAT rule {} instead of {}", nat(allowed.nat_rule), nat(record.nat_rule))
            }
        }
    }

    fn why_it_ends(&self, ends: &Ends, standing: &Standing) -> String {
        let name = |interface: u16| {
            self.then.interfaces.names().get(usize::from(interface)).map_or("?", String::as_str)
        };
        match (ends.ruling, ends.lost_to, ends.reason) {
            (Some(ruling), ..) if ruling.rule == DEFAULT_RULE => String::from("no rule allows it"),
            (Some(ruling), ..) => {
                let names = self.then.policy_slots.rules.names();
                format!("rule {} refuses it", names.get(ruling.rule as usize).map_or("?", String::as_str))
            }
            (_, Some(reason), _) => format!("{}: {}", reason.name(), reason.explanation()),
            (_, _, DropReason::BackendFailed) => {
                String::from("its backend or service is gone or disabled, and says reset")
            }
            (_, _, DropReason::NatPathChanged) => {
                format!("it leaves by {} no more, and its source is another there", name(standing.egress))
            }
            _ => String::from("it would come from or go to another zone, or to the gateway itself"),
        }
    }

    fn where_it_moves(&self, judged: &Judged, standing: &Standing) -> String {
        let way = |compiler: &Compiler, egress: u16, via: Option<u32>| {
            let name = compiler.interfaces.names().get(usize::from(egress)).map_or("nowhere", String::as_str);
            let via = via.filter(|slot| (*slot as usize) < MAX_SLOTS);
            match via {
                Some(slot) => format!("{name} via {}", compiler.neighbours().key_of(slot).1),
                None => name.to_owned(),
            }
        };
        let Standing { egress, next_hop, back, .. } = standing;
        if judged.leads_elsewhere(standing) {
            let (old, new) = (
                way(self.now, *egress, Some(next_hop.slot())),
                way(self.then, judged.allowed.egress, judged.allowed.via),
            );
            return format!("leaves by {new} instead of {old}");
        }
        let old = way(self.now, back.0, Some(back.1.slot()));
        format!("replies leave by {} instead of {old}", way(self.then, judged.back.0, judged.back.1))
    }
}
