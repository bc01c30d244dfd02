//! What the kernel tells of processes on this machine: CPU time, memory, who belongs to whom.

use std::time::Duration;

/// CPU time that a process has taken, with what its ended children had. `None`: there is no such process, or no /proc.
pub(super) fn cpu(pid: u32) -> Option<Duration> {
    let stat = Stat::of(pid)?;
    Some(ticks(stat.own + stat.ended_children))
}

/// CPU time of a process and of all its children, those that have ended included.
pub(super) fn cpu_of_family(parent: u32) -> Option<Duration> {
    let mut sum = {
        let stat = Stat::of(parent)?;
        stat.own + stat.ended_children
    };
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // One that ends just now is counted among the ended at the next look.
        if let Some(stat) = pid.and_then(Stat::of)
            && stat.parent == parent
        {
            sum += stat.own;
        }
    }
    Some(ticks(sum))
}

/// The parent of a process whose program has this name.
pub(super) fn parent(pid: u32, name: &str) -> Option<u32> {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    match comm.trim_end() == name {
        true => Some(Stat::of(pid)?.parent),
        false => None,
    }
}

/// Bytes of memory that the process holds.
pub(super) fn memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

struct Stat {
    parent: u32,
    own: u64,
    ended_children: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name stands in brackets, and may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: number(11)? + number(12)?,
            ended_children: number(13)? + number(14)?,
        })
    }
}

fn ticks(count: u64) -> Duration {
    let a_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_secs_f64(count as f64 / a_second as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let own = std::process::id();
        assert!(cpu(own).is_some());
        assert!(memory(own).unwrap() > 1 << 20);
        let parent = std::os::unix::process::parent_id();
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(super::parent(own, comm.trim_end()), Some(parent));
        assert_eq!(super::parent(own, "postgres"), None);
        assert!(cpu_of_family(parent).unwrap() >= cpu(own).unwrap());
    }
}
