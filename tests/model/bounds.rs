//! How far is explored. Each bound is exhausted; what it leaves out, another one has.

use std::time::Duration;

use super::broken::Rule;
use super::calls::Kind;
use super::world::{Bound, Fault, LONG, SHORT};

fn base() -> Bound {
    Bound {
        rule: Rule::None,
        jobs: 1,
        workers: 1,
        slots: 1,
        enqueue: false,
        keyed: false,
        timeout: None,
        end: Duration::ZERO,
        short: false,
        late: usize::MAX,
        tidies: false,
        faults: Vec::new(),
        faults_max: 0,
        split: Vec::new(),
        looks: false,
    }
}

/// Any of these faults, each as often as it is named, and so many in all.
fn faults(max: u8, faults: &[Fault]) -> Bound {
    let times = |fault: &Fault| faults.iter().filter(|other| *other == fault).count() as u8;
    Bound {
        faults: faults.iter().map(|fault| (*fault, times(fault))).collect(),
        faults_max: max,
        ..base()
    }
}

pub fn all(large: bool) -> Vec<(&'static str, Bound)> {
    use Fault::*;
    let end = |small: Duration, more: Duration| if large { more } else { small };
    let max = |small: u8, more: u8| if large { more } else { small };
    let late = |small: usize, more: usize| if large { more } else { small };
    let split = |small: &[Kind], more: &[Kind]| if large { more } else { small }.to_vec();
    vec![
        (
            "a stream breaks at either end, a node or a worker dies",
            Bound {
                short: true,
                end: end(SHORT, 2 * LONG),
                late: late(2, 1),
                split: split(&[], &[Kind::Grant, Kind::Record]),
                ..faults(max(1, 2), &[Cut, Sever, Crash, Kill])
            },
        ),
        (
            "a session expires, and its worker comes late",
            Bound {
                workers: max(1, 2).into(),
                end: 3 * LONG,
                late: 0,
                tidies: large,
                ..faults(max(1, 2), &[Kill, Pause])
            },
        ),
        (
            "cancelled, retried by hand, failed, timed out",
            Bound {
                timeout: Some(LONG),
                end: end(LONG, 2 * LONG),
                late: late(0, 1),
                split: split(&[], &[Kind::Record, Kind::Own]),
                ..faults(2, &[Cancel, Retry, Fail, Cut])
            },
        ),
        (
            "nodes drain and workers leave",
            Bound {
                short: true,
                end: end(SHORT, 2 * LONG),
                late: 1,
                split: vec![Kind::Grant],
                ..faults(max(1, 2), &[Drain, Leave, Cut, Crash])
            },
        ),
        (
            "calls to the store whose outcome is in doubt",
            Bound {
                short: true,
                end: SHORT,
                late: late(1, 3),
                looks: true,
                split: split(
                    &[Kind::Grant],
                    &[Kind::Grant, Kind::Record, Kind::Attach, Kind::Find],
                ),
                ..faults(max(1, 2), &[Lose, Lose, Cut])
            },
        ),
        (
            "sweeps between renewals and moves",
            Bound {
                end: end(LONG, 3 * LONG),
                late: late(1, 2),
                split: split(&[Kind::Renew], &[Kind::Renew, Kind::Attach]),
                ..faults(max(0, 1), &[Cut])
            },
        ),
        (
            "accepted, with hints wiped and doubled",
            Bound {
                enqueue: true,
                workers: max(1, 2).into(),
                split: vec![Kind::Enqueue, Kind::Grant],
                ..faults(max(1, 2), &[Wipe, Double, Lose, Crash])
            },
        ),
        (
            "messages that come twice or never",
            Bound {
                short: true,
                end: end(SHORT, LONG),
                late: 2,
                looks: true,
                ..faults(max(1, 2), &[Repeat, Repeat, Miss, Cut])
            },
        ),
        (
            "the store is away for a while",
            Bound {
                end: end(LONG, 3 * LONG),
                late: late(0, 1),
                ..faults(max(1, 2), &[Outage, Cut, Kill])
            },
        ),
        (
            "a process copied, a job removed",
            Bound {
                end: LONG,
                late: late(0, 1),
                ..faults(max(1, 2), &[Copy, Purge, Cut])
            },
        ),
        (
            "three callers with one key",
            Bound {
                jobs: if large { 3 } else { 2 },
                enqueue: true,
                keyed: true,
                split: vec![Kind::Enqueue],
                ..faults(max(1, 2), &[Lose, Crash, Purge])
            },
        ),
        (
            "two jobs in two slots",
            Bound {
                jobs: 2,
                slots: 2,
                end: end(Duration::ZERO, LONG),
                late: 1,
                ..faults(max(1, 2), &[Cut, Crash, Cancel])
            },
        ),
        (
            "three jobs, two workers",
            Bound {
                jobs: if large { 3 } else { 2 },
                workers: 2,
                ..faults(max(0, 1), &[Crash, Kill])
            },
        ),
    ]
}

/// The least that shows what a broken rule does.
pub fn for_rule(rule: Rule) -> Bound {
    let bound = |end: u32, all: &[Fault], split: &[Kind]| Bound {
        end: end * LONG,
        late: 3,
        split: split.to_vec(),
        ..faults(all.len() as u8, all)
    };
    match rule {
        Rule::None => base(),
        Rule::AcceptBeforeCommit => Bound {
            enqueue: true,
            ..bound(0, &[Fault::Crash], &[Kind::Enqueue])
        },
        Rule::ReceiptBeforeCommit => bound(0, &[], &[Kind::Record]),
        Rule::FrameBeforeCommit => bound(0, &[], &[Kind::Grant]),
        Rule::AckBeforeCommit => bound(3, &[], &[Kind::Renew]),
        Rule::NoFence => Bound {
            slots: 2,
            ..bound(0, &[Fault::Cancel, Fault::Retry], &[])
        },
        Rule::RescueById => bound(3, &[Fault::Cancel], &[Kind::Sweep]),
        Rule::SweepUnchecked => bound(3, &[], &[Kind::Sweep, Kind::Renew]),
        Rule::RenewDead => bound(3, &[], &[Kind::Renew]),
        Rule::NoReconcile => bound(0, &[Fault::Wipe], &[]),
        Rule::GrantUnguarded => Bound {
            workers: 2,
            ..bound(0, &[Fault::Double], &[])
        },
        Rule::GrantUnlocked => bound(1, &[Fault::Cut], &[Kind::Grant, Kind::Attach]),
        Rule::GrantAnyStream => bound(1, &[Fault::Cut], &[Kind::Grant]),
        Rule::AttemptGivenBack => bound(3, &[Fault::Kill], &[]),
        Rule::CopyIsStale => bound(2, &[Fault::Cut], &[]),
        Rule::RetryKeepsSession => bound(1, &[Fault::Cancel, Fault::Retry], &[]),
        Rule::TimeoutKeepsSession => Bound {
            timeout: Some(LONG),
            ..bound(1, &[], &[])
        },
        Rule::AttachAnyNumber => bound(2, &[Fault::Cut, Fault::Cut], &[]),
        Rule::ResumeListedOnly => bound(1, &[Fault::Cut], &[]),
        Rule::LeasesBeforeAttach => bound(1, &[Fault::Cut], &[Kind::Attach, Kind::Grant]),
        Rule::HeldReadApart => bound(2, &[], &[]),
        Rule::SessionInherited => bound(1, &[Fault::Kill], &[]),
        Rule::CancelUntold => bound(0, &[Fault::Cancel], &[]),
        Rule::NoTakeBack => bound(3, &[Fault::Kill], &[]),
        Rule::AttachRenewsNothing => bound(3, &[], &[]),
        Rule::KeyCheckedApart | Rule::KeyIgnoresRequest => Bound {
            jobs: 3,
            enqueue: true,
            keyed: true,
            ..bound(0, &[], &[Kind::Enqueue])
        },
        Rule::PurgedIsStale => bound(1, &[Fault::Cut, Fault::Purge], &[]),
        Rule::PurgedUnseen => bound(0, &[Fault::Cancel, Fault::Retry, Fault::Purge], &[]),
        Rule::DoubtIsStale => bound(0, &[Fault::Lose], &[Kind::Record]),
        Rule::DoubtIsRecorded => bound(0, &[Fault::Outage], &[]),
        Rule::CopyComesBack => bound(1, &[Fault::Copy], &[]),
    }
}
