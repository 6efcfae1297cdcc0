//! The command line: `hearth` alone serves; the other commands look after a server's data.

mod serve;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError};

/// A federated Matrix homeserver in one binary.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, about)]
struct Arguments {
    /// The configuration file (TOML); without it, hearth.toml in the working folder if there is one.
    #[arg(short, long, env = "HEARTH_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (what `hearth` alone does).
    Serve,
}

/// What may stop a command.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearth: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = configuration(arguments.config)?;
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::serve(config),
    }
}

fn configuration(file: Option<PathBuf>) -> Result<Config, ConfigError> {
    let usual = PathBuf::from("hearth.toml");
    let file = file.or_else(|| usual.exists().then_some(usual));
    Config::load(file.as_deref(), std::env::vars())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
