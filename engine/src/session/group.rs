//! Groups: sessions that get each packet once between them, and who takes part now.
//!
//! ```text
//! add, remove, suspect, trust, tend --> Membership: up | settling until | suspect
//!                                           |  those that are up take part; if none is, those that
//!                                           v  settle are up at once; if none does, the suspects
//!                                       Roster { sessions, groups with their slots } --> workers
//! ```
//!
//! A worker sees a new roster between two batches, so a frame goes to one member of a group,
//! whatever changes. Two workers may see it at different times: a flow's frames are one worker's.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Session;
use super::balance::{self, Name, SLOTS};
use crate::stats::sensor::{Move, SensorStats};

/// What a session shares with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Sessions with this number get each packet once between them.
    pub group: usize,
    /// The sensor as it was configured, `host:port`: the same text on every node, since it decides
    /// who gets which flow.
    pub sensor: String,
    /// Which of the connections to it.
    pub ordinal: usize,
    /// How long it gets nothing, as long as others do, when it is back after an absence: this, up
    /// to twice.
    pub settle: Duration,
}

/// The sessions that are open, and how some of them share.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    sessions: Vec<Arc<Session>>,
    groups: Vec<Arc<Group>>,
}

impl Roster {
    /// The groups that have members.
    #[must_use]
    pub fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }
}

impl Deref for Roster {
    type Target = [Arc<Session>];

    fn deref(&self) -> &[Arc<Session>] {
        &self.sessions
    }
}

/// Those who take part in a group now.
#[derive(Debug)]
pub struct Group {
    number: usize,
    members: Vec<Arc<Session>>,
    /// Place in `members`, by slot; empty for one member, which owns them all.
    owners: Box<[u16]>,
}

impl PartialEq for Group {
    /// The same members share in the same way.
    fn eq(&self, other: &Self) -> bool {
        self.is(other.number, &other.members)
    }
}

impl Group {
    fn new(number: usize, members: Vec<Arc<Session>>) -> Self {
        let owners = if members.len() > 1 {
            balance::owners(&members.iter().filter_map(|member| name(member)).collect::<Vec<_>>())
        } else {
            Box::default()
        };
        Self { number, members, owners }
    }

    /// The members; at least one.
    #[must_use]
    pub fn members(&self) -> &[Arc<Session>] {
        &self.members
    }

    /// The place in [`members`](Self::members) of a slot's owner.
    #[inline]
    #[must_use]
    pub fn owner(&self, slot: usize) -> usize {
        self.owners.get(slot).copied().map_or(0, usize::from)
    }

    fn is(&self, number: usize, members: &[Arc<Session>]) -> bool {
        let ids = |members: &[Arc<Session>]| members.iter().map(|m| m.id).collect::<Vec<_>>();
        self.number == number && ids(&self.members) == ids(members)
    }

    fn has_sensor(&self, sensor: usize) -> bool {
        self.members.iter().any(|member| member.spec.sensor == sensor)
    }
}

fn name(session: &Session) -> Option<Name<'_>> {
    let share = session.spec.share.as_ref()?;
    Some(Name { sensor: &share.sensor, ordinal: share.ordinal })
}

/// How far a session is to be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Up,
    /// Back after an absence; a sensor that comes and goes must not tear flows each time.
    Settling(Instant),
    /// Open, but there are signs that nobody receives it.
    Suspect,
}

/// How long from now a session settles: to the first whole multiple of `settle` on the wall clock
/// that leaves it at least that. Each node comes back to a sensor at a time of its own; what they
/// share is the clock, so most of them move the two directions of a flow at one moment.
fn settling(settle: Duration) -> Duration {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    settling_at(wall, settle)
}

fn settling_at(wall: Duration, settle: Duration) -> Duration {
    let over = wall.as_nanos().checked_rem(settle.as_nanos()).unwrap_or(0);
    let left = settle.as_nanos().saturating_sub(over) * u128::from(over != 0);
    settle + Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
}

/// What the roster is made from; control's side only.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// By session; those that share nothing are not in it.
    standings: HashMap<u64, (Standing, Duration)>,
    /// Members that were there once, by group, sensor and ordinal.
    known: HashSet<(usize, String, usize)>,
    /// Sensors that took part once, by group and index.
    seen: HashSet<(usize, usize)>,
}

impl Membership {
    pub(super) fn enter(&mut self, session: &Session, now: Instant) {
        let Some(share) = &session.spec.share else { return };
        let is_new = self.known.insert((share.group, share.sensor.clone(), share.ordinal));
        let standing = match is_new {
            true => Standing::Up,
            false => Standing::Settling(now + settling(share.settle)),
        };
        self.standings.insert(session.id, (standing, share.settle));
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.standings.remove(&id);
    }

    /// True if that is news.
    pub(super) fn suspect(&mut self, id: u64) -> bool {
        self.put(id, |standing, _settle| {
            (standing != Standing::Suspect).then_some(Standing::Suspect)
        })
    }

    /// True if that is news.
    pub(super) fn trust(&mut self, id: u64, now: Instant) -> bool {
        self.put(id, |standing, settle| {
            (standing == Standing::Suspect).then(|| Standing::Settling(now + settling(settle)))
        })
    }

    fn put(&mut self, id: u64, next: impl FnOnce(Standing, Duration) -> Option<Standing>) -> bool {
        let Some((standing, settle)) = self.standings.get_mut(&id) else { return false };
        let next = next(*standing, *settle);
        *standing = next.unwrap_or(*standing);
        next.is_some()
    }

    /// True if somebody has settled.
    pub(super) fn settle(&mut self, now: Instant) -> bool {
        let mut has_settled = false;
        for (standing, _) in self.standings.values_mut() {
            if matches!(standing, Standing::Settling(until) if *until <= now) {
                *standing = Standing::Up;
                has_settled = true;
            }
        }
        has_settled
    }

    /// When the next one has settled.
    pub(super) fn due(&self) -> Option<Instant> {
        let until = |(standing, _): &(Standing, Duration)| match standing {
            Standing::Settling(until) => Some(*until),
            _ => None,
        };
        self.standings.values().filter_map(until).min()
    }

    /// The roster with these sessions; groups of `old` are kept where nothing changed.
    pub(super) fn roster(&mut self, sessions: Vec<Arc<Session>>, old: &Roster) -> Roster {
        let mut numbers: Vec<usize> =
            sessions.iter().filter_map(|s| Some(s.spec.share.as_ref()?.group)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let groups = numbers
            .into_iter()
            .map(|number| {
                let members = self.members(number, &sessions);
                let kept = old.groups.iter().find(|group| group.is(number, &members));
                kept.cloned().unwrap_or_else(|| Arc::new(Group::new(number, members)))
            })
            .collect();
        Roster { sessions, groups }
    }

    /// Those of a group that take part.
    fn members(&mut self, number: usize, sessions: &[Arc<Session>]) -> Vec<Arc<Session>> {
        let in_group = |session: &&Arc<Session>| {
            session.spec.share.as_ref().is_some_and(|share| share.group == number)
        };
        let all: Vec<_> = sessions.iter().filter(in_group).cloned().collect();
        let up = |standings: &HashMap<u64, (Standing, Duration)>| {
            let is_up = |session: &&Arc<Session>| {
                matches!(standings.get(&session.id), Some((Standing::Up, _)))
            };
            all.iter().filter(is_up).cloned().collect::<Vec<_>>()
        };
        let mut members = up(&self.standings);
        if members.is_empty() {
            // Those that settle are needed now, and are up from now on: who settles next must not
            // take their flows away again.
            for session in &all {
                if let Some((standing @ Standing::Settling(_), _)) =
                    self.standings.get_mut(&session.id)
                {
                    *standing = Standing::Up;
                }
            }
            members = up(&self.standings);
        }
        // Suspects are better than none.
        if members.is_empty() { all } else { members }
    }

    /// Counts who went and who came, and what moved with them, and says so.
    pub(super) fn count_moves(
        &mut self,
        sensors: &[Arc<SensorStats>],
        old: &Roster,
        new: &Roster,
        reason: &str,
    ) {
        let mut numbers: Vec<usize> =
            old.groups.iter().chain(&new.groups).map(|group| group.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let find = |roster: &Roster| {
                roster.groups.iter().find(|group| group.number == number).cloned()
            };
            let (before, after) = (find(old), find(new));
            if before == after {
                continue;
            }
            self.count_group(number, sensors, before.as_deref(), after.as_deref(), reason);
        }
    }

    fn count_group(
        &mut self,
        number: usize,
        sensors: &[Arc<SensorStats>],
        before: Option<&Group>,
        after: Option<&Group>,
        reason: &str,
    ) {
        let (gained, owned) = slots(before, after, sensors.len());
        for (index, stats) in sensors.iter().enumerate() {
            let takes_part = |group: Option<&Group>| group.is_some_and(|g| g.has_sensor(index));
            let (was, is) = (takes_part(before), takes_part(after));
            if !was && !is {
                continue;
            }
            stats.add_slots_moved(gained[index]);
            stats.set_slots(owned[index]);
            let kind = match (was, is) {
                (true, false) => Move::Left,
                (false, true) if self.seen.insert((number, index)) => Move::Joined,
                (false, true) => Move::Returned,
                _ => continue,
            };
            stats.count_move(kind);
            tracing::info!(
                sensor = stats.label(),
                kind = kind.label(),
                reason,
                slots = owned[index],
                members = after.map_or(0, |group| group.members.len()),
                "the sensors' shares changed"
            );
        }
    }
}

/// For each sensor: slots that came to one of its sessions from another session, and slots that it
/// owns now.
fn slots(before: Option<&Group>, after: Option<&Group>, sensors: usize) -> (Vec<u64>, Vec<u64>) {
    let (mut gained, mut owned) = (vec![0; sensors], vec![0; sensors]);
    let Some(after) = after else { return (gained, owned) };
    for slot in 0..SLOTS {
        let now = &after.members[after.owner(slot)];
        let index = now.spec.sensor;
        let has_moved =
            before.is_some_and(|before| name(&before.members[before.owner(slot)]) != name(now));
        if let (Some(gained), Some(owned)) = (gained.get_mut(index), owned.get_mut(index)) {
            *gained += u64::from(has_moved);
            *owned += 1;
        }
    }
    (gained, owned)
}

#[cfg(test)]
mod tests;
