//! Python, for clients that are not ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// What the Python client needs, and what reads our OpenAPI document.
const REQUIREMENTS: [&str; 2] = ["requirements.txt", "openapi.txt"];

/// A virtual environment with all of it, made once and kept in the build's own folder. Who comes meanwhile waits.
pub fn python() -> PathBuf {
    static MADE: LazyLock<PathBuf> = LazyLock::new(make);
    MADE.clone()
}

fn make() -> PathBuf {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let requirements = REQUIREMENTS.map(|name| clients.join(name));
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = venv.join("bin/python");
    let ready = venv.join("ready");
    let wanted = requirements
        .each_ref()
        .map(|file| std::fs::read_to_string(file).unwrap());
    let wanted = wanted.concat();
    if std::fs::read_to_string(&ready).ok().as_deref() != Some(wanted.as_str()) {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv));
        let mut install = Command::new(&python);
        install.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]);
        for file in &requirements {
            install.arg("-r").arg(file);
        }
        run(&mut install);
        std::fs::write(&ready, wanted).unwrap();
    }
    python
}

/// Runs it to its end, which must be a good one, and gives what it wrote.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; is python3-venv installed? run ./scripts/test")
    });
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}:\n{text}");
    text
}
