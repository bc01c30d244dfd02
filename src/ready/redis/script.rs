//! The scripts that Redis runs for us. Each is one step: it checks the marker, and does in one command what would take a
//! round trip to learn what to ask for and another to ask.

use redis::{Pipeline, Script, Value};

use super::{RedisReady, reply};
use crate::error::{Error, Result};

/// A script, and the name by which a server knows it.
pub(super) struct Lua {
    text: &'static str,
    script: Script,
}

impl Lua {
    fn new(text: &'static str) -> Self {
        Self {
            text,
            script: Script::new(text),
        }
    }
}

/// All scripts.
pub(super) struct Scripts {
    pub take: Lua,
    pub steal: Lua,
    pub shelve: Lua,
    pub offer: Lua,
    pub begin: Lua,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            take: Lua::new(concat!(
                include_str!("entries.lua"),
                include_str!("take.lua")
            )),
            steal: Lua::new(concat!(
                include_str!("entries.lua"),
                include_str!("steal.lua")
            )),
            shelve: Lua::new(concat!(
                include_str!("entries.lua"),
                include_str!("shelve.lua")
            )),
            offer: Lua::new(include_str!("offer.lua")),
            begin: Lua::new(include_str!("begin.lua")),
        }
    }
}

/// What a script is called with.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub keys: Vec<String>,
    pub args: Vec<Vec<u8>>,
}

impl Call {
    fn add(&self, pipe: &mut Pipeline, command: &str, script: &str) {
        pipe.cmd(command)
            .arg(script)
            .arg(self.keys.len())
            .arg(&self.keys)
            .arg(&self.args);
    }
}

impl RedisReady {
    /// Runs a script once for each call, in one go. One answer a call, in order; an error of the server is an answer too,
    /// but for the one that says that no scripts are allowed.
    pub(super) async fn run(&self, script: &Lua, calls: &[Call]) -> Result<Vec<Value>> {
        let mut pipe = Pipeline::with_capacity(calls.len());
        for call in calls {
            call.add(&mut pipe, "EVALSHA", script.script.get_hash());
        }
        let mut answers = self.ask(&pipe).await?;
        // A server that has just come does not know the script, and does nothing. EVAL brings it.
        let strange: Vec<usize> = (0..answers.len())
            .filter(|n| answers.get(*n).is_some_and(reply::is_unknown_script))
            .collect();
        if !strange.is_empty() {
            pipe.clear();
            for call in strange.iter().filter_map(|n| calls.get(*n)) {
                call.add(&mut pipe, "EVAL", script.text);
            }
            for (n, answer) in strange.iter().zip(self.ask(&pipe).await?) {
                if let Some(place) = answers.get_mut(*n) {
                    *place = answer;
                }
            }
        }
        match answers.iter().any(reply::is_forbidden) {
            true => Err(forbidden()),
            false => Ok(answers),
        }
    }
}

/// Adds the smallest script there is: who may not run it may run none.
pub(super) fn try_one(pipe: &mut Pipeline) {
    pipe.cmd("EVAL").arg("return 1").arg(0);
}

/// The user may not run scripts.
pub(super) fn forbidden() -> Error {
    Error::unavailable("redis with scripts allowed")
}
