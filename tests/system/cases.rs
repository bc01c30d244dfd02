//! Cases that mostly wait, in one test: the harness runs as many tests at once as there are cores, which are idle then.

use std::any::type_name;
use std::panic::resume_unwind;
use std::thread;
use std::time::Instant;

use tokio::runtime::Runtime;

/// One case; it fails by a panic, as a test does.
pub struct Case(Box<dyn FnOnce() + Send>);

/// A case that has a thread and a runtime of its own. Not a task beside others: the end of a case drops its database,
/// which holds up its thread, and Postgres answers that only once no connection is half-way through saying who it is.
pub fn case<F: Future<Output = ()> + 'static>(run: fn() -> F) -> Case {
    Case(Box::new(move || {
        let begun = Instant::now();
        Runtime::new().expect("a runtime starts").block_on(run());
        let name = type_name::<F>().trim_end_matches("::{{closure}}");
        println!("{name} took {:?}", begun.elapsed());
    }))
}

/// Runs them side by side to their ends. It fails as the first of them that failed.
pub fn side_by_side(cases: impl IntoIterator<Item = Case>) {
    let running: Vec<_> = cases
        .into_iter()
        .map(|case| thread::spawn(case.0))
        .collect();
    let ended: Vec<_> = running.into_iter().map(|case| case.join()).collect();
    for panicked in ended.into_iter().filter_map(Result::err).take(1) {
        resume_unwind(panicked);
    }
}
