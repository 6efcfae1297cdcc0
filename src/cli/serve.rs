//! `hearth serve`: from the configuration to a running server and its orderly end.

use std::{io::IsTerminal as _, sync::Arc};

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::{
    app::App,
    client_api,
    config::{Config, LogFormat},
    federation_api,
    http::{Dispatcher, Shutdown},
    server::{self, Front, Listeners},
};

pub(super) fn serve(config: Config) -> Result<(), Failure> {
    start_logging(&config)?;
    raise_open_file_limit();
    super::runtime()?.block_on(run(Arc::new(config)))
}

async fn run(config: Arc<Config>) -> Result<(), Failure> {
    let shutdown = Shutdown::default();
    stop_on_signals(shutdown.clone())?;
    let listeners = Listeners::bind(&config).await?;
    let addresses = listeners.addresses();
    tracing::info!(server_name = %config.server_name, ?addresses, "listening");
    let front = Front::default();
    let serving =
        tokio::spawn(server::serve(listeners, front.clone(), config.limits.connections, shutdown.clone()));
    let opened = App::open(config.clone(), shutdown.clone()).await.map_err(server::StartError::from);
    let app = match opened {
        Ok(app) => app,
        Err(error) => {
            shutdown.begin();
            return Err(error.into());
        }
    };
    super::admin::listen(app.clone())?;
    client_api::resume(app.clone());
    federation_api::resume(app.clone());
    front.open(Dispatcher::new(app.clone(), &server::routes())?);
    tracing::info!("ready");
    serving.await?;
    app.close().await;
    tracing::info!("stopped");
    Ok(())
}

fn stop_on_signals(shutdown: Shutdown) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        shutdown.begin();
        // A second signal does not wait for anybody.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}

fn start_logging(config: &Config) -> Result<(), Failure> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(&config.log.level)
        .map_err(|error| format!("the configuration key \"log.level\" has a wrong value: {error}"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    // Colours are for people, not for files and journals.
    let logs = logs.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match config.log.format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

/// Fewer open files than this are soon used up by connections.
const WANTED_OPEN_FILES: u64 = 4096;

/// Every connection is an open file: take as many as the system grants.
fn raise_open_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Failing to raise it is no reason not to run; the line below tells.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if now < WANTED_OPEN_FILES {
        tracing::warn!(
            limit = now,
            wanted = WANTED_OPEN_FILES,
            "the limit of open files is low: connections beyond it will be refused (ulimit -n, LimitNOFILE)"
        );
    }
}
