//! `hearth doctor`: what stands between this server and others, in words. It asks nothing of a running server but what
//! any other server may, and changes nothing.

use std::sync::Arc;

use hearth_dag::Keypair;
use hearth_federation::{
    Https, HttpsOptions,
    dns::SystemDns,
    doctor::{Doctor, Finding, Verdict},
    load_or_create_key,
};
use ruma::{OwnedServerName, ServerName};

use super::Failure;
use crate::{clock::now_ms, config::Config};

pub(super) fn run(config: &Config, server: Option<&str>) -> Result<(), Failure> {
    let server = server.map(ServerName::parse).transpose().map_err(|_| "that is not a server name")?;
    let mut findings = of_configuration(config);
    // What is wrong here already need not be looked for on the way to here.
    if server.is_some() || findings.iter().all(|finding| finding.verdict != Verdict::Bad) {
        findings.extend(super::runtime()?.block_on(walk(config, server))?);
    }
    for finding in &findings {
        println!("{finding}");
    }
    let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    if bad == 0 { Ok(()) } else { Err(format!("{bad} of {} findings are bad", findings.len()).into()) }
}

async fn walk(config: &Config, server: Option<OwnedServerName>) -> Result<Vec<Finding>, Failure> {
    let options = HttpsOptions {
        extra_root_certificates: config.extra_root_certificates.clone(),
        allow_private_addresses: config.allow_private_addresses,
    };
    let network = Https::new(&options, Arc::new(SystemDns::new()))?;
    let doctor = Doctor { discovery: network.discovery(), network: &network, now_ms: now_ms() };
    let Some(server) = server else {
        let own = own_key(config)?;
        return Ok(doctor.examine(&config.server_name, Some(&own)).await);
    };
    Ok(doctor.examine(&server, None).await)
}

/// The key that the server signs with. Only the server makes one.
fn own_key(config: &Config) -> Result<Keypair, Failure> {
    let path = config.signing_key_path();
    if !path.exists() {
        return Err(format!("there is no key in {} yet: start the server once", path.display()).into());
    }
    Ok(load_or_create_key(&path, &config.server_name)?)
}

/// What can be said without asking anybody.
fn of_configuration(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |verdict, text: &str| findings.push(Finding { verdict, text: text.to_owned() });
    if !config.federation.enabled {
        say(Verdict::Bad, "federation.enabled is false: this server talks to no other.");
    }
    if config.server_name.host() == "localhost" && !config.allow_private_addresses {
        say(
            Verdict::Bad,
            "server_name is localhost: every server takes that for itself. Choose a name before there are users; it \
             cannot be changed later.",
        );
    }
    if config.federation.bind.is_empty()
        && config.public_base_url.is_none()
        && config.federation.well_known_server.is_none()
    {
        say(
            Verdict::Hint,
            "Neither federation.bind, public_base_url nor federation.well_known_server is set: others find this \
             server only if a proxy on port 8448, or its delegation, passes their requests on.",
        );
    }
    findings
}
