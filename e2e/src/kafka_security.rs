//! What makes a broker a secure one: a certificate of its own, and users with passwords.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::tools;

/// A comma, an equals sign and a semicolon: what lists of settings are usually cut at.
pub const PASSWORD: &str = "pl4in-s3cret,with=all;of them";
/// For SCRAM; the tool that makes the user cuts at commas.
pub const SCRAM_PASSWORD: &str = "scr4m-s3cret";
const USER: &str = "nearby";
const STORE_PASSWORD: &str = "store-of-the-test";

/// The certificate of a broker, and how clients get in.
#[derive(Debug)]
pub struct Security {
    folder: PathBuf,
}

impl Security {
    /// Makes a certificate for 127.0.0.1 that vouches for itself.
    pub fn new(folder: &Path) -> anyhow::Result<Security> {
        let security = Security { folder: folder.to_owned() };
        let store = security.store();
        let name = ["-ext", "san=ip:127.0.0.1", "-dname", "CN=a broker of the tests", "-validity", "2"];
        keytool(&store, &[&["-genkeypair", "-keyalg", "EC"], &name[..]].concat())?;
        let certificate = security.certificate();
        let certificate = certificate.to_str().context("a path that is text")?;
        keytool(&store, &["-exportcert", "-rfc", "-file", certificate])?;
        Ok(security)
    }

    /// The PEM file by which clients know the broker.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("broker.pem")
    }

    /// Properties of a client that may in, `KEY=VALUE` a line.
    pub fn client_properties(&self) -> String {
        self.properties_with(&self.certificate(), "PLAIN", PASSWORD)
    }

    /// The same with a certificate, a mechanism and a password of choice.
    pub fn properties_with(&self, certificate: &Path, mechanism: &str, password: &str) -> String {
        let certificate = certificate.display();
        format!(
            "security.protocol=SASL_SSL\nssl.ca.location={certificate}\nsasl.mechanisms={mechanism}\n\
             sasl.username={USER}\nsasl.password={password}\n"
        )
    }

    /// Settings of the broker for its listener `CLIENTS`.
    pub(crate) fn broker_properties(&self) -> String {
        let modules = "org.apache.kafka.common.security";
        format!(
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.clients.ssl.keystore.type=PKCS12
listener.name.clients.ssl.keystore.location={store}
listener.name.clients.ssl.keystore.password={STORE_PASSWORD}
listener.name.clients.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";
listener.name.clients.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;
",
            store = self.store().display()
        )
    }

    /// Arguments for formatting the log, which holds the users of SCRAM.
    pub(crate) fn format_arguments() -> [String; 2] {
        ["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={USER},password={SCRAM_PASSWORD}]")]
    }

    fn store(&self) -> PathBuf {
        self.folder.join("broker.p12")
    }
}

fn keytool(store: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(tools::program(&["keytool"], &[])?);
    command.args(arguments).args(["-alias", "broker", "-storetype", "PKCS12", "-storepass", STORE_PASSWORD]);
    let output = command.arg("-keystore").arg(store).output().context("run keytool")?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("keytool failed ({})\n{out}{err}", output.status);
    }
    Ok(())
}
