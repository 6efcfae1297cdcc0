//! The command line: `hearth` alone serves; the other commands look after a server's data.

pub mod admin;
mod destinations;
mod doctor;
pub mod inspect;
mod password;
mod serve;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::admin::AdminRequest;
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
    /// Look after accounts.
    #[command(subcommand)]
    User(UserCommand),
    /// Show which servers cannot be reached and since when, or have them tried again at once.
    Destinations {
        #[command(subcommand)]
        command: Option<DestinationsCommand>,
    },
    /// Say in words how other servers reach this one, or how this one reaches another, and what is wrong on the way.
    Doctor {
        /// Which server; without it, this one.
        server: Option<String>,
    },
    /// Show the tables of the store, or the rows of one.
    Inspect {
        /// Which table; without it, a list of all.
        table: Option<String>,
        /// Only keys that begin with these bytes, in hexadecimal digits.
        #[arg(long)]
        prefix: Option<String>,
        /// Rows at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
}

#[derive(Debug, Subcommand)]
enum DestinationsCommand {
    /// List the servers that cannot be reached (what `hearth destinations` alone does).
    List,
    /// Try a server again at once, whenever it failed.
    Reset {
        /// Which server; without it, all.
        server: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Make an account; the first one becomes an administrator's.
    Create {
        /// The user name: `alice` or `@alice:example.org`.
        name: String,
        /// Make up a password and print it, instead of reading one.
        #[arg(long)]
        generate: bool,
        /// Make it an administrator's account.
        #[arg(long, conflicts_with = "no_admin")]
        admin: bool,
        /// Do not make it an administrator's account, even if it is the first.
        #[arg(long)]
        no_admin: bool,
    },
    /// Give an account another password and log it out everywhere.
    ResetPassword {
        /// The user name.
        name: String,
        /// Make up a password and print it, instead of reading one.
        #[arg(long)]
        generate: bool,
    },
    /// List all accounts.
    List,
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
        Command::User(command) => user(config, command),
        Command::Destinations { command: asked } => {
            let request = match asked.unwrap_or(DestinationsCommand::List) {
                DestinationsCommand::List => AdminRequest::ListDestinations,
                DestinationsCommand::Reset { server } => AdminRequest::ResetDestinations { server },
            };
            command(config, request)
        }
        Command::Doctor { server } => doctor::run(&config, server.as_deref()),
        Command::Inspect { table, prefix, limit } => {
            let question = inspect::Question { table, prefix, limit };
            command(config, AdminRequest::Inspect(question))
        }
    }
}

fn user(config: Config, asked: UserCommand) -> Result<(), Failure> {
    match asked {
        UserCommand::Create { name, generate, admin, no_admin } => {
            let password = password_of(generate)?;
            let admin = if admin || no_admin { Some(admin) } else { None };
            command(config, AdminRequest::CreateUser { name, password, admin })
        }
        UserCommand::ResetPassword { name, generate } => {
            let password = password_of(generate)?;
            command(config, AdminRequest::ResetPassword { name, password })
        }
        UserCommand::List => command(config, AdminRequest::ListUsers),
    }
}

fn password_of(generate: bool) -> Result<String, Failure> {
    if !generate {
        return password::read();
    }
    let password = password::generate();
    println!("password: {password}");
    Ok(password)
}

fn command(config: Config, request: AdminRequest) -> Result<(), Failure> {
    let lines = runtime()?.block_on(admin::run(config, request))?;
    for line in lines {
        println!("{line}");
    }
    Ok(())
}

fn configuration(file: Option<PathBuf>) -> Result<Config, ConfigError> {
    let usual = PathBuf::from("hearth.toml");
    let file = file.or_else(|| usual.exists().then_some(usual));
    Config::load(file.as_deref(), std::env::vars())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
