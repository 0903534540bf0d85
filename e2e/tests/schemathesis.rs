//! `schemas/openapi.yaml` is held true by somebody else's program too: schemathesis derives requests from the file, good ones and bad,
//! and compares what a running server answers with what the file says.

use anyhow::ensure;
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::{ports, programs};
use std::time::Duration;

const SECRET: &str = "a secret for the tests alone";
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
/// Requests that it makes up for each operation, beside examples and boundaries.
const EXAMPLES_MAX: &str = "60";

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_answer_that_the_file_does_not_know() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    // It is one user, and sends much.
    let args = ["run", "--listen", &listen, "--dev-tokens", "--user-rate-per-s", "100000", "--user-burst", "100000"];
    let mut nearby = Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET)])?;
    let url = nearby.wait_ready(READY)?.http;
    let authorization = format!("Authorization: Bearer {}", token(SECRET, 42, "friends:write ingest:any")?);
    let said = programs::schemathesis(&[
        "--url",
        &url,
        "--header",
        &authorization,
        "--max-examples",
        EXAMPLES_MAX,
        "--seed",
        "1",
        "--generation-database",
        "none",
        "--request-timeout",
        "10",
        "--no-color",
        // Their answers do not end, or are no HTTP.
        "--exclude-path-regex",
        "/v1/(events|stream|dev/wire)$",
        // A time is refused when it is too old or in the future: that depends on the clock, which a schema does not know.
        "--exclude-checks",
        "positive_data_acceptance",
    ])?;
    ensure!(said.contains("Tested: 11") && said.contains("No issues found"), "{said}");
    ensure!(nearby.is_running()?, "the server has survived it");
    Ok(())
}
