//! Where a command's password comes from: a person at the terminal, another program, or chance.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    process::{Command, Stdio},
};

use rand::{Rng as _, distr::Alphanumeric};

use super::Failure;

/// A password that nobody has to think of.
#[allow(clippy::disallowed_methods, reason = "the home of chance for commands")]
pub fn generate() -> String {
    rand::rng().sample_iter(Alphanumeric).take(20).map(char::from).collect()
}

/// The first line of the standard input; asked for twice, unseen, if that is a terminal.
pub fn read() -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return line();
    }
    let first = unseen("Password: ")?;
    let second = unseen("Again: ")?;
    if first == second { Ok(first) } else { Err("the two passwords are not the same".into()) }
}

fn line() -> Result<String, Failure> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

fn unseen(prompt: &str) -> Result<String, Failure> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    echo("-echo");
    let line = line();
    echo("echo");
    eprintln!();
    line
}

/// Where there is no `stty`, what is typed is seen: no reason to refuse.
fn echo(word: &str) {
    let _ = Command::new("stty").arg(word).stdin(Stdio::inherit()).stderr(Stdio::null()).status();
}
