//! Commands that look after a server's data: what they ask, what they do, and how they reach a running server.
//! * While a server runs it alone has the store; commands reach it through a socket in the data folder, which only
//!   the folder's owner can open. Otherwise the command opens the store itself.
//! * A request is one line of JSON; the answer is lines of JSON, text first, the outcome last.

use std::{io, path::Path, sync::Arc};

use hearth_users::{AccountError, NewAccount};
use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{Failure, destinations, inspect};
use crate::{app::App, config::Config, http::Shutdown};

/// What a command asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum AdminRequest {
    /// A new account. Without `admin` it becomes an administrator's if there is none yet.
    CreateUser {
        /// The local part or the whole id.
        name: String,
        /// The password.
        password: String,
        /// Whether it may administer the server.
        admin: Option<bool>,
    },
    /// Another password; the user is logged out everywhere.
    ResetPassword {
        /// The local part or the whole id.
        name: String,
        /// The new password.
        password: String,
    },
    /// All accounts.
    ListUsers,
    /// The servers that cannot be reached.
    ListDestinations,
    /// They are tried again at once.
    ResetDestinations {
        /// Which one; none: all.
        server: Option<String>,
    },
    /// The tables, or rows of one.
    Inspect(inspect::Question),
}

/// The last line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Text(String),
    Done,
    Failed(String),
}

/// Does what is asked. The lines are for the person who asked.
pub async fn perform(app: &App, request: AdminRequest) -> Result<Vec<String>, Failure> {
    match request {
        AdminRequest::CreateUser { name, password, admin } => create_user(app, &name, &password, admin).await,
        AdminRequest::ResetPassword { name, password } => reset_password(app, &name, &password).await,
        AdminRequest::ListUsers => list_users(app).await,
        AdminRequest::ListDestinations => destinations::list(app).await,
        AdminRequest::ResetDestinations { server } => destinations::reset(app, server.as_deref()).await,
        AdminRequest::Inspect(question) => inspect::answer(&app.store, &question).await,
    }
}

async fn create_user(
    app: &App,
    name: &str,
    password: &str,
    admin: Option<bool>,
) -> Result<Vec<String>, Failure> {
    let user_id = user_id(app, name)?;
    check_password(password)?;
    app.users.check_user_id_free(&user_id).await?;
    let admin = match admin {
        Some(admin) => admin,
        None => !has_admin(app).await?,
    };
    let password = app.users.hash_password(password).await?;
    let mut account = NewAccount::person(user_id.clone(), Some(password));
    account.admin = admin;
    account.displayname = Some(user_id.localpart().to_owned());
    app.users.create_account(account, None).await?;
    let what = if admin { "administrator" } else { "user" };
    Ok(vec![format!("created the {what} {user_id}")])
}

async fn reset_password(app: &App, name: &str, password: &str) -> Result<Vec<String>, Failure> {
    let user_id = user_id(app, name)?;
    check_password(password)?;
    let hash = app.users.hash_password(password).await?;
    app.users.set_password(&user_id, hash).await.map_err(|error| match error {
        AccountError::Unknown => format!("there is no account {user_id}").into(),
        error => Failure::from(error),
    })?;
    app.users.delete_devices_except(&user_id, None).await?;
    Ok(vec![format!("{user_id} has a new password and is logged out everywhere")])
}

/// Accounts read at a time.
const BATCH: usize = 500;

async fn list_users(app: &App) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    let mut after: Option<OwnedUserId> = None;
    loop {
        let accounts = app.users.accounts(after.as_deref(), BATCH).await?;
        for (user_id, account) in &accounts {
            let marks = [
                (account.admin, "admin"),
                (account.locked, "locked"),
                (account.suspended, "suspended"),
                (account.deactivated, "deactivated"),
            ];
            let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| format!(" {mark}"));
            lines.push(format!("{user_id}{}", marks.collect::<String>()));
        }
        match accounts.last() {
            Some((last, _)) if accounts.len() == BATCH => after = Some(last.clone()),
            _ => return Ok(lines),
        }
    }
}

async fn has_admin(app: &App) -> Result<bool, Failure> {
    let mut after: Option<OwnedUserId> = None;
    loop {
        let accounts = app.users.accounts(after.as_deref(), BATCH).await?;
        if accounts.iter().any(|(_, account)| account.admin && !account.deactivated) {
            return Ok(true);
        }
        match accounts.last() {
            Some((last, _)) if accounts.len() == BATCH => after = Some(last.clone()),
            _ => return Ok(false),
        }
    }
}

fn user_id(app: &App, name: &str) -> Result<OwnedUserId, Failure> {
    let server_name = &app.config.server_name;
    let user_id = UserId::parse_with_server_name(name, server_name)
        .map_err(|error| format!("\"{name}\" is no user name: {error}"))?;
    if user_id.server_name() != &**server_name {
        return Err(format!("{user_id} does not belong to this server, {server_name}").into());
    }
    Ok(user_id)
}

fn check_password(password: &str) -> Result<(), Failure> {
    if password.is_empty() { Err("the password is empty".into()) } else { Ok(()) }
}

/// More than the longest request.
const MAX_REQUEST: u64 = 64 * 1024;

/// Serves commands until the shutdown. The socket is there when this returns.
pub fn listen(app: App) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = app.config.admin_socket_path();
    // One of a process that was killed: nobody else can have it, the store is ours.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = app.shutdown.begun() => break,
            };
            if let Ok((stream, _)) = accepted {
                let app = app.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(&app, stream).await {
                        tracing::debug!(%error, "a command went away");
                    }
                });
            }
        }
        // The next process removes it too, should this fail.
        let _ = std::fs::remove_file(&path);
    });
    Ok(())
}

async fn serve(app: &App, stream: UnixStream) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reading.take(MAX_REQUEST)).read_line(&mut line).await?;
    let outcome = match serde_json::from_str(&line) {
        Ok(request) => perform(app, request).await,
        Err(error) => Err(error.into()),
    };
    let lines = match outcome {
        Ok(lines) => lines.into_iter().map(Line::Text).chain([Line::Done]).collect(),
        Err(error) => vec![Line::Failed(error.to_string())],
    };
    for line in lines {
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        writing.write_all(&line).await?;
    }
    writing.shutdown().await
}

/// Asks the running server; `None` if none runs.
async fn ask(socket: &Path, request: &AdminRequest) -> Result<Option<Vec<String>>, Failure> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ConnectionRefused | NotFound) => return Ok(None),
        Err(error) => return Err(format!("{} cannot be used: {error}", socket.display()).into()),
    };
    let (reading, mut writing) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writing.write_all(&line).await?;
    let mut answer = BufReader::new(reading).lines();
    let mut lines = Vec::new();
    while let Some(line) = answer.next_line().await? {
        match serde_json::from_str(&line)? {
            Line::Text(text) => lines.push(text),
            Line::Done => return Ok(Some(lines)),
            Line::Failed(error) => return Err(error.into()),
        }
    }
    Err("the server went away before it answered".into())
}

/// Has a request done, by the running server or on the store itself.
pub async fn run(config: Config, request: AdminRequest) -> Result<Vec<String>, Failure> {
    if let Some(lines) = ask(&config.admin_socket_path(), &request).await? {
        return Ok(lines);
    }
    let app = App::open(Arc::new(config), Shutdown::default()).await?;
    let outcome = perform(&app, request).await;
    app.close().await;
    outcome
}
