//! How cost grows: with the number of senders, the age of a room, the rooms of a user, the members of a room, the
//! size of the store. `cargo bench --bench growth [-- NAME ...]`, where NAME is `senders`, `age`, `rooms`,
//! `members` or `restart`; without a name, all of them.
//! * The server is the release binary in a process of its own with default durability and caches; its CPU and memory
//!   are read from `/proc`. Only what cannot be set up by HTTP in reasonable time (20,000 members, 500,000 events)
//!   is written through the `rooms` crate into the data directory.
//! * Every figure that has a bound prints it beside; a figure out of its bound makes the bench fail.
//! * Compared figures are medians, taken in turns, since small machines are noisy.

mod age;
mod client;
mod fill;
mod members;
mod report;
mod restart;
mod rooms;
mod senders;
mod server;

use report::Report;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    // `cargo bench` hands on `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let all = ["senders", "age", "rooms", "members", "restart"];
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(&name.as_str())) {
        return Err(format!("no bench is called {unknown}; there are {}", all.join(", ")).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut report = Report::default();
    for name in all {
        if !wanted.is_empty() && !wanted.iter().any(|one| one == name) {
            continue;
        }
        eprintln!("{name} …");
        runtime.block_on(async {
            match name {
                "senders" => senders::run(&mut report).await,
                "age" => age::run(&mut report).await,
                "rooms" => rooms::run(&mut report).await,
                "members" => members::run(&mut report).await,
                _ => restart::run(&mut report).await,
            }
        })?;
    }
    report.finish()
}
