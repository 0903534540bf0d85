//! Programs in other languages, run from the project's folder: those of `docs/data-engineers.md`, as it says there, and clients
//! that others wrote.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::tools;

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// What a program in `e2e/python` prints. Blocks.
pub fn python(program: &str, args: &[&str]) -> anyhow::Result<String> {
    python_with(program, args, "")
}

/// What a program in `e2e/python` prints for this input. Blocks.
pub fn python_with(program: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut command = Command::new(tools::made("python/bin/python")?);
    command.arg(format!("e2e/python/{program}")).args(args);
    output(command, input)
}

/// What a program in `e2e/python` prints that takes settings from its environment. Blocks.
pub fn python_in(envs: &[(&str, &str)], program: &str, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(tools::made("python/bin/python")?);
    command.arg(format!("e2e/python/{program}")).args(args).envs(envs.iter().copied());
    output(command, "")
}

/// AsyncAPI's own schema of version 3.0.0, out of its package.
pub fn asyncapi_schema() -> anyhow::Result<PathBuf> {
    tools::made("node/node_modules/@asyncapi/specs/schemas/3.0.0.json")
}

/// What k6 prints for a script in `bench/k6`. Blocks.
pub fn k6(script: &str, envs: &[(&str, &str)]) -> anyhow::Result<String> {
    let mut command = Command::new(tools::made("k6/k6")?);
    command.args(["run", "--quiet", "--no-usage-report", "--no-color", &format!("bench/k6/{script}")]);
    command.envs(envs.iter().copied());
    output(command, "")
}

/// What a program in `e2e/node` prints; `node` itself takes the arguments before its name. Blocks.
pub fn node(before: &[&str], program: &str, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(tools::program(&["node"], &[])?);
    command.args(before).arg(format!("e2e/node/{program}")).args(args);
    command.env("NODE_LIBRARIES", tools::made("node")?);
    output(command, "")
}

/// What schemathesis prints for `schemas/openapi.yaml`. Blocks.
pub fn schemathesis(args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(tools::made("python/bin/schemathesis")?);
    // It leaves what it remembers where it runs.
    let scratch = tempfile::tempdir()?;
    command.arg("run").arg(root().join("schemas/openapi.yaml")).args(args).current_dir(scratch.path());
    output(command, "")
}

/// What a program in `e2e/java` prints for this input. Blocks.
pub fn java(program: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut command = Command::new(tools::program(&["java"], &[])?);
    let libraries = format!("{}/*", tools::made("java-libs")?.display());
    command.args(["-cp", &libraries, &format!("e2e/java/{program}")]).args(args);
    output(command, input)
}

fn output(mut command: Command, input: &str) -> anyhow::Result<String> {
    let line = format!("{command:?}");
    if command.get_current_dir().is_none() {
        command.current_dir(root());
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| line.clone())?;
    // All of it is read before anything is printed.
    child.stdin.take().context("its standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{line}: {}\n{}\n{}", output.status, said(&output.stdout), said(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
