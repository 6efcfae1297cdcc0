//! The release binary as a process of its own.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{Result, client::Client};

/// How long a server may take to answer.
const START_BOUND: Duration = Duration::from_secs(120);

pub struct Server {
    child: Child,
    pub base: String,
    log: PathBuf,
    stopped: bool,
}

/// What the server says of its store when it has stopped.
#[derive(Debug, Default)]
pub struct StoreTotals {
    pub commits: f64,
    pub flushes: f64,
    pub flush_mean_us: f64,
}

impl Server {
    /// Starts the server on a data directory, and does not wait for it.
    pub fn spawn(data: &Path) -> Result<Self> {
        fs::create_dir_all(data)?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let config = data.with_extension("toml");
        fs::write(
            &config,
            format!(
                "data_dir = \"{}\"\nbind = [\"127.0.0.1:{port}\"]\n[registration]\nopen = true\n\
                 [rate_limits]\nenabled = false\n",
                data.display()
            ),
        )?;
        let log = data.with_extension("log");
        let child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .arg("--config")
            .arg(&config)
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        Ok(Self { child, base: format!("http://127.0.0.1:{port}"), log, stopped: false })
    }

    /// Starts the server and waits until it answers.
    pub async fn start(data: &Path) -> Result<Self> {
        let server = Self::spawn(data)?;
        server.ready().await?;
        Ok(server)
    }

    /// Waits until clients are served; how long that took.
    pub async fn ready(&self) -> Result<Duration> {
        let start = Instant::now();
        let client = Client::new(&self.base)?;
        loop {
            if let Ok((200, _)) = client.get_status("/health").await {
                return Ok(start.elapsed());
            }
            if start.elapsed() > START_BOUND {
                return Err(format!("no answer in {START_BOUND:?}, see {}", self.log.display()).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// CPU spent so far, in milliseconds. The kernel counts in ticks of 10 ms.
    pub fn cpu_ms(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        Ok((ticks(11) + ticks(12)) * 10.0)
    }

    /// Resident memory in MiB.
    pub fn rss_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        let kib: f64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
        Ok(kib / 1024.0)
    }

    /// Stops in good order, and reads what the server logged of its store.
    pub async fn stop(mut self) -> Result<StoreTotals> {
        self.stopped = true;
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                return Err("the server did not stop".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = fs::read_to_string(&self.log)?;
        let mut totals = StoreTotals::default();
        for line in log.lines().filter(|line| line.contains("store closed")) {
            let number = |name: &str| {
                let plain: String = strip_colours(line);
                let at = plain.find(&format!("{name}="))? + name.len() + 1;
                plain[at..].split_whitespace().next()?.parse::<f64>().ok()
            };
            totals.commits = number("commits").unwrap_or(0.0);
            totals.flushes = number("flushes").unwrap_or(0.0);
            totals.flush_mean_us = number("flush_mean_us").unwrap_or(0.0);
        }
        Ok(totals)
    }
}

fn strip_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut in_escape = false;
    for c in line.chars() {
        match c {
            '\u{1b}' => in_escape = true,
            'm' if in_escape => in_escape = false,
            _ if in_escape => {}
            c => plain.push(c),
        }
    }
    plain
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The bytes of the files in a folder and below.
pub fn bytes_on_disk(folder: &Path) -> Result<f64> {
    let mut bytes = 0.0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let facts = entry.metadata()?;
        bytes += if facts.is_dir() { bytes_on_disk(&entry.path())? } else { facts.len() as f64 };
    }
    Ok(bytes)
}
