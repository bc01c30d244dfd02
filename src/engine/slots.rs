//! The free slots of the node's sessions, by queue. They are kept up to date where they change, so that a look for jobs
//! costs nothing for sessions that have no part in it: thousands of idle streams, of this queue or of others.

use std::collections::{BTreeMap, HashMap};

use super::lines_of;
use crate::job::{QueueName, SessionId};
use crate::store::Line;

/// Who has free slots of which queue. Of each queue they stand in a line: who is given a job goes to its end, so that one
/// with a single slot gets as many turns as one with a thousand.
#[derive(Debug)]
pub struct Slots<T> {
    queues: BTreeMap<QueueName, Queue<T>>,
    places: HashMap<SessionId, Vec<Place>>,
    /// What can be placed at once.
    all: usize,
    /// Of the next one at the end of a line.
    turn: u64,
}

#[derive(Debug)]
struct Queue<T> {
    free: usize,
    room: usize,
    line: BTreeMap<u64, (SessionId, T)>,
}

/// Where a session stands in a queue's line.
#[derive(Debug)]
struct Place {
    queue: QueueName,
    free: u32,
    room: u32,
    turn: u64,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            places: HashMap::new(),
            all: 0,
            turn: 0,
        }
    }
}

impl<T: Clone> Slots<T> {
    /// Says how many slots of each of its queues a session has free now, beside those in flight. It keeps its places in
    /// line.
    pub fn set(&mut self, id: SessionId, taker: &T, free: Vec<(QueueName, u32)>, in_flight: u32) {
        // As many as leave half of all that it takes free.
        let room = |free: u32| free.saturating_sub(in_flight).div_ceil(2);
        let before = self.places.get(&id).map(Vec::as_slice).unwrap_or_default();
        let counted = before
            .iter()
            .map(|place| (&place.queue, place.free, place.room));
        let some = free.iter().filter(|(_, free)| *free > 0);
        if counted.eq(some.map(|(queue, free)| (queue, *free, room(*free)))) {
            return;
        }
        let before = self.places.remove(&id).unwrap_or_default();
        self.all -= most(&before);
        let mut before = Before::new(before);
        let mut places = Vec::with_capacity(free.len());
        for (queue, free) in free.into_iter().filter(|(_, free)| *free > 0) {
            let of = self.queues.entry(queue.clone()).or_insert(Queue {
                free: 0,
                room: 0,
                line: BTreeMap::new(),
            });
            let room = room(free);
            of.free += free as usize;
            of.room += room as usize;
            let turn = match before.take(&queue) {
                Some(place) => {
                    of.free -= place.free as usize;
                    of.room -= place.room as usize;
                    place.turn
                }
                None => {
                    self.turn += 1;
                    of.line.insert(self.turn, (id, taker.clone()));
                    self.turn
                }
            };
            places.push(Place {
                queue,
                free,
                room,
                turn,
            });
        }
        for place in before.left() {
            if let Some(of) = self.queues.get_mut(&place.queue) {
                of.free -= place.free as usize;
                of.room -= place.room as usize;
                of.line.remove(&place.turn);
                if of.line.is_empty() {
                    self.queues.remove(&place.queue);
                }
            }
        }
        self.all += most(&places);
        if !places.is_empty() {
            self.places.insert(id, places);
        }
    }

    /// Takes a slot of the session whose turn it is. It may turn out that it has none: then [`Slots::set`] says so. Its
    /// slots of other queues, which may be the same, are counted as before until then.
    pub fn take(&mut self, queue: &QueueName) -> Option<T> {
        let of = self.queues.get_mut(queue)?;
        let (_, (id, taker)) = of.line.pop_first()?;
        let places = self.places.get_mut(&id)?;
        let before = most(places);
        if let Some(at) = places.iter().position(|place| place.queue == *queue)
            && let Some(place) = places.get_mut(at)
        {
            place.free -= 1;
            of.free -= 1;
            // What is left of it is known at the next count.
            of.room -= place.room.min(1) as usize;
            place.room -= place.room.min(1);
            if place.free > 0 {
                self.turn += 1;
                place.turn = self.turn;
                of.line.insert(self.turn, (id, taker.clone()));
            } else {
                of.room -= place.room as usize;
                places.remove(at);
            }
        }
        self.all = self.all + most(places) - before;
        if places.is_empty() {
            self.places.remove(&id);
        }
        if of.line.is_empty() {
            self.queues.remove(queue);
        }
        Some(taker)
    }

    /// What is free now.
    pub fn free(&self) -> Free {
        let each = |count: fn(&Queue<T>) -> usize| {
            let counts = self
                .queues
                .iter()
                .map(|(queue, of)| (queue.clone(), count(of)));
            counts.collect()
        };
        Free {
            queues: each(|of| of.free),
            room: each(|of| of.room),
            all: self.all,
        }
    }
}

/// Where a session stood, to be taken out one by one. They stand in the order of its queues, as what they are looked up
/// by does: so each is found where the last one was.
struct Before {
    places: Vec<Option<Place>>,
    at: usize,
}

impl Before {
    fn new(places: Vec<Place>) -> Self {
        Self {
            places: places.into_iter().map(Some).collect(),
            at: 0,
        }
    }

    fn take(&mut self, queue: &QueueName) -> Option<Place> {
        let is_it = |place: &Option<Place>| place.as_ref().is_some_and(|p| p.queue == *queue);
        let (past, next) = self.places.split_at(self.at);
        let found = match next.iter().position(is_it) {
            Some(n) => self.at + n,
            None => past.iter().position(is_it)?,
        };
        self.at = found + 1;
        self.places.get_mut(found)?.take()
    }

    /// Those that nobody has asked for.
    fn left(self) -> impl Iterator<Item = Place> {
        self.places.into_iter().flatten()
    }
}

/// What one session can take at once: its slots of several queues may be the same ones.
fn most(places: &[Place]) -> usize {
    let most = places.iter().map(|place| place.free).max();
    most.unwrap_or(0) as usize
}

/// Free slots at some moment.
#[derive(Debug, Default)]
pub struct Free {
    /// Of each queue that has some.
    pub queues: BTreeMap<QueueName, usize>,
    /// How many jobs of each this node may feed to itself: as many as leave half of what its sessions take in free.
    pub room: BTreeMap<QueueName, usize>,
    /// How many jobs could be placed. A session's slots that each of its queues may have count once.
    pub all: usize,
}

impl Free {
    /// The lines of the queues that have free slots.
    pub fn lines(&self) -> Vec<Line> {
        lines_of(self.queues.keys().cloned().collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    fn id(of: u8) -> SessionId {
        SessionId::of_token(&[of; 32])
    }

    fn set(slots: &mut Slots<u8>, of: u8, free: &[(&str, u32)]) {
        let free = free.iter().map(|(name, free)| (queue(name), *free));
        slots.set(id(of), &of, free.collect(), 0);
    }

    fn wanted(slots: &Slots<u8>) -> Vec<(String, usize)> {
        let of = |(queue, free): (QueueName, usize)| (queue.to_string(), free);
        slots.free().queues.into_iter().map(of).collect()
    }

    #[test]
    fn one_slot_gets_as_many_turns_as_a_thousand() {
        let mut slots = Slots::default();
        set(&mut slots, 1, &[("q", 1_000)]);
        set(&mut slots, 2, &[("q", 1)]);
        let mut got = [0; 3];
        for _ in 0..100 {
            let taker = slots.take(&queue("q")).unwrap();
            got[usize::from(taker)] += 1;
            // The small one is done at once, and is free again.
            if taker == 2 {
                set(&mut slots, 2, &[]);
                set(&mut slots, 2, &[("q", 1)]);
            }
        }
        assert_eq!(got, [0, 50, 50]);
    }

    #[test]
    fn who_says_that_nothing_has_changed_keeps_its_turn() {
        let mut slots = Slots::default();
        for of in 1..=3 {
            set(&mut slots, of, &[("q", 5)]);
        }
        assert_eq!(slots.take(&queue("q")), Some(1));
        set(&mut slots, 2, &[("q", 4)]);
        set(&mut slots, 1, &[("q", 4)]);
        let next: Vec<_> = (0..3).filter_map(|_| slots.take(&queue("q"))).collect();
        assert_eq!(next, [2, 3, 1]);
    }

    #[test]
    fn slots_that_several_queues_may_have_count_once_in_all() {
        let mut slots = Slots::default();
        set(&mut slots, 1, &[("a", 2), ("b", 3), ("c", 0)]);
        set(&mut slots, 2, &[("b", 4)]);
        assert_eq!(wanted(&slots), [("a".into(), 2), ("b".into(), 7)]);
        assert_eq!(slots.free().all, 7);
        set(&mut slots, 1, &[("a", 1), ("b", 1)]);
        assert_eq!(slots.free().all, 5);
        set(&mut slots, 2, &[]);
        assert_eq!(wanted(&slots), [("a".into(), 1), ("b".into(), 1)]);
        assert_eq!(slots.free().all, 1);
    }

    #[test]
    fn there_is_room_while_more_than_half_is_free() {
        let mut slots = Slots::default();
        let room = |slots: &Slots<u8>| slots.free().room.into_values().sum::<usize>();
        set(&mut slots, 1, &[("q", 1)]);
        assert_eq!(room(&slots), 1);
        slots.set(id(2), &2, vec![(queue("q"), 6)], 2);
        assert_eq!(room(&slots), 1 + 2);
        slots.set(id(2), &2, vec![(queue("q"), 4)], 4);
        assert_eq!(room(&slots), 1);
        assert_eq!(slots.take(&queue("q")), Some(1));
        assert_eq!(room(&slots), 0);
    }

    #[test]
    fn nothing_is_left_of_who_is_gone_or_full() {
        let mut slots = Slots::default();
        set(&mut slots, 1, &[("a", 1), ("b", 2)]);
        set(&mut slots, 2, &[("a", 1)]);
        assert_eq!(slots.take(&queue("a")), Some(1));
        assert_eq!(slots.take(&queue("a")), Some(2));
        assert_eq!(slots.take(&queue("a")), None);
        set(&mut slots, 1, &[]);
        assert_eq!(slots.free().all, 0);
        assert!(slots.queues.is_empty() && slots.places.is_empty());
    }
}
