//! A plan with what it did, as `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)` tells it, and what may not be in it.

use std::fmt;

use serde_json::Value;

/// Tables that grow with the jobs, or with the time that they take.
const LARGE: [&str; 6] = [
    "jobs",
    "attempts",
    "backlog",
    "grants",
    "finished",
    "bulk_chunks",
];

/// One statement that was run.
pub struct Plan {
    query: String,
    root: Value,
}

/// One node, and how often it was run for how many rows.
struct Step<'p> {
    node: &'p Value,
}

/// How much a statement may do.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Rows that any one node gives or looks at, in all its loops.
    pub rows: u64,
    /// Blocks that any one node, with all below it, touches.
    pub blocks: u64,
}

impl Plan {
    /// Reads what `auto_explain` wrote.
    pub fn of_message(message: &str) -> Option<Self> {
        let (_, json) = message.split_once("plan:\n")?;
        let all: Value = serde_json::from_str(json).expect("a plan is JSON");
        Some(Self {
            query: all["Query Text"].as_str().unwrap_or_default().to_owned(),
            root: all["Plan"].clone(),
        })
    }

    /// The statement.
    pub fn query(&self) -> &str {
        self.query.trim_start()
    }

    /// No table is read whole, no batch is compared with another one row by row, and nothing on `jobs` is joined but by
    /// the walk of an index. The work stays within `bound`, whatever the tables hold. `what` was done.
    pub fn check(&self, bound: Bound, what: &str) {
        for step in self.steps() {
            let (kind, table) = (step.text("Node Type"), step.text("Relation Name"));
            let is_whole = matches!(kind, "Seq Scan" | "Sample Scan") && LARGE.contains(&table);
            assert!(!is_whole, "{what}: {table} is read whole in\n{self}");
            let is_set_join = matches!(kind, "Hash Join" | "Merge Join");
            assert!(!is_set_join, "{what}: a {kind} in\n{self}");
            let rows = step.rows();
            assert!(
                rows <= bound.rows,
                "{what}: {kind} on {table}{} looks at {rows} rows where {} are enough in\n{self}",
                step.text("CTE Name"),
                bound.rows
            );
            let blocks = step.blocks();
            assert!(
                blocks <= bound.blocks,
                "{what}: {kind} on {table} touches {blocks} blocks where {} are enough in\n{self}",
                bound.blocks
            );
        }
    }

    /// Rows that any one node gives or looks at, in all its loops.
    pub fn rows(&self) -> u64 {
        self.steps().iter().map(Step::rows).max().unwrap_or(0)
    }

    /// Each look at `jobs` goes by its id.
    pub fn check_by_id(&self, what: &str) {
        for step in self.steps() {
            let (kind, index) = (step.text("Node Type"), step.text("Index Name"));
            let is_of_jobs = step.text("Relation Name") == "jobs" && kind.starts_with("Index");
            if is_of_jobs || index.starts_with("jobs_") {
                assert_eq!(index, "jobs_pkey", "{what}: {kind} in\n{self}");
            }
        }
    }

    fn steps(&self) -> Vec<Step<'_>> {
        let mut steps = Vec::new();
        let mut open = vec![&self.root];
        while let Some(node) = open.pop() {
            steps.push(Step { node });
            open.extend(node["Plans"].as_array().into_iter().flatten());
        }
        steps
    }
}

impl Step<'_> {
    fn text(&self, key: &str) -> &str {
        self.node[key].as_str().unwrap_or_default()
    }

    fn number(&self, key: &str) -> u64 {
        self.node[key].as_u64().unwrap_or(0)
    }

    /// Rows that it gave or threw away in all loops; a loop counts at least for itself.
    fn rows(&self) -> u64 {
        let each = self.number("Actual Rows")
            + self.number("Rows Removed by Filter")
            + self.number("Rows Removed by Join Filter")
            + self.number("Rows Removed by Index Recheck");
        self.number("Actual Loops") * each.max(1)
    }

    fn blocks(&self) -> u64 {
        self.number("Shared Hit Blocks") + self.number("Shared Read Blocks")
    }
}

/// The statement and its plan, a node a line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.query())?;
        let mut open = vec![(0, &self.root)];
        while let Some((depth, node)) = open.pop() {
            let step = Step { node };
            write!(f, "{:1$}", "", 2 * depth)?;
            for key in [
                "Subplan Name",
                "Node Type",
                "Operation",
                "Relation Name",
                "CTE Name",
                "Index Name",
                "Index Cond",
            ] {
                if !step.text(key).is_empty() {
                    write!(f, "{} ", step.text(key))?;
                }
            }
            let plans = node["Plans"].as_array();
            writeln!(
                f,
                "loops={} rows={} removed={}+{} blocks={} estimate={}",
                step.number("Actual Loops"),
                step.number("Actual Rows"),
                step.number("Rows Removed by Filter"),
                step.number("Rows Removed by Join Filter"),
                step.blocks(),
                node["Plan Rows"],
            )?;
            open.extend(
                plans
                    .into_iter()
                    .flatten()
                    .rev()
                    .map(|below| (depth + 1, below)),
            );
        }
        Ok(())
    }
}
