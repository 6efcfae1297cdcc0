//! The commands as an operator runs them: on a running server through its socket, and on the data folder alone.

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn hearth(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.env("HEARTH_DATA_DIR", data).env("HEARTH_BIND", "127.0.0.1:0").env("HEARTH_LOG__LEVEL", "warn");
    command.current_dir(data.parent().unwrap()).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn run(data: &Path, arguments: &[&str]) -> Output {
    hearth(data).args(arguments).output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn failed(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

struct Server(Child);

impl Server {
    fn start(data: &Path) -> Self {
        let server = Self(hearth(data).stderr(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !data.join("admin.sock").exists() {
            assert!(Instant::now() < deadline, "the server does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[test]
fn accounts_are_made_with_and_without_a_running_server() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let first = printed(&run(&data, &["user", "create", "alice", "--generate"]));
    assert!(first.contains("password: ") && first.contains("administrator @alice:localhost"), "{first}");

    let server = Server::start(&data);
    let second = printed(&run(&data, &["user", "create", "@bob:localhost", "--generate"]));
    assert!(second.contains("created the user @bob:localhost"), "{second}");
    let mut reset =
        hearth(&data).args(["user", "reset-password", "bob"]).stdin(Stdio::piped()).spawn().unwrap();
    reset.stdin.take().unwrap().write_all(b"a new password\n").unwrap();
    assert!(reset.wait().unwrap().success());
    let taken = failed(&run(&data, &["user", "create", "bob", "--generate"]));
    assert!(taken.contains("taken"), "{taken}");
    let foreign = failed(&run(&data, &["user", "create", "@bob:elsewhere", "--generate"]));
    assert!(foreign.contains("does not belong to this server"), "{foreign}");
    server.stop();

    assert!(!data.join("admin.sock").exists());
    let list = printed(&run(&data, &["user", "list"]));
    assert_eq!(list, "@alice:localhost admin\n@bob:localhost\n");
    let tables = printed(&run(&data, &["inspect"]));
    assert!(tables.contains("accounts"), "{tables}");
    let accounts = printed(&run(&data, &["inspect", "accounts"]));
    assert!(accounts.contains("@alice:localhost"), "{accounts}");
    let secrets = printed(&run(&data, &["inspect", "passwords"]));
    assert!(!secrets.contains("argon2"), "{secrets}");
    assert!(failed(&run(&data, &["inspect", "acounts"])).contains("did you mean \"accounts\""));
}

#[test]
fn servers_out_of_reach_are_listed_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let nobody = "no server is known to be out of reach\n";
    assert_eq!(printed(&run(&data, &["destinations"])), nobody);
    let server = Server::start(&data);
    assert_eq!(printed(&run(&data, &["destinations", "list"])), nobody);
    assert_eq!(printed(&run(&data, &["destinations", "reset"])), "");
    let refused = failed(&run(&data, &["destinations", "reset", "a.test"]));
    assert!(refused.contains("a.test is not known to be out of reach"), "{refused}");
    assert!(failed(&run(&data, &["destinations", "reset", "no name"])).contains("no server name"));
    server.stop();
}

#[test]
fn data_of_another_server_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    printed(&run(&data, &["user", "list"]));
    let refused = failed(&hearth(&data).env("HEARTH_SERVER_NAME", "b.test").output().unwrap());
    assert!(
        refused.contains("belongs to the server localhost") && refused.contains("server_name"),
        "{refused}"
    );
}

#[test]
fn the_version_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let version = printed(&run(&folder.path().join("data"), &["--version"]));
    assert_eq!(version.trim(), format!("hearth {}", env!("CARGO_PKG_VERSION")));
}
