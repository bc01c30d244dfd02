//! The program. Everything is in the library; the commands begin in `cli`.

fn main() -> std::process::ExitCode {
    leasehold::cli::main()
}
