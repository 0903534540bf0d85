//! `web/nearby.js`, the JavaScript client, against a gateway of a few lines: `e2e/node/nearby.test.mjs`. The page test and
//! `conformance` have it against the real one.

#[test]
fn the_javascript_client_keeps_its_promises() -> anyhow::Result<()> {
    let said = nearby_e2e::programs::node(&["--test", "--test-reporter=spec"], "nearby.test.mjs", &[])?;
    anyhow::ensure!(said.contains("pass 11"), "all of its tests are run:\n{said}");
    Ok(())
}
