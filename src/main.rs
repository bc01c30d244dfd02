//! The program. Everything is in the library; the commands begin in `cli`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator asks for huge pages. They make nothing faster here, and thousands of idle streams, whose buffers are
    // mostly never written to, would hold half as much memory again. Where it cannot be switched off, that is the price.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    leasehold::cli::main()
}
