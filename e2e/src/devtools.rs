//! The DevTools protocol: numbered calls and unnumbered events over one WebSocket.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

const CALL_LIMIT: Duration = Duration::from_secs(60);
const QUEUED_CALLS_MAX: usize = 64;

/// A connection to a browser. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct DevTools {
    calls: mpsc::Sender<Call>,
    task: JoinHandle<()>,
}

struct Call {
    request: Value,
    answer: oneshot::Sender<Value>,
}

impl DevTools {
    /// Connects, and from then on hands every event to `on_event`: its method and its parameters.
    pub(crate) async fn connect(
        url: &str,
        on_event: impl FnMut(&str, &Value) + Send + 'static,
    ) -> anyhow::Result<Self> {
        // A screenshot is one big frame.
        let settings = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, _) = connect_async_with_config(url, Some(settings), true).await.context("connect to DevTools")?;
        let (calls, receiver) = mpsc::channel(QUEUED_CALLS_MAX);
        let task = tokio::spawn(serve(socket, receiver, on_event));
        Ok(DevTools { calls, task })
    }

    /// Calls a method, in the given session if there is one, and waits for its result.
    pub(crate) async fn call(&self, session: Option<&str>, method: &str, params: Value) -> anyhow::Result<Value> {
        let mut request = json!({"method": method, "params": params});
        if let Some(session) = session {
            request["sessionId"] = json!(session);
        }
        let (answer, answered) = oneshot::channel();
        let gone = || anyhow!("Chromium closed its DevTools connection before {method} was answered");
        self.calls.send(Call { request, answer }).await.map_err(|_| gone())?;
        let answer = tokio::time::timeout(CALL_LIMIT, answered);
        let mut answer =
            answer.await.with_context(|| format!("{method} took over {CALL_LIMIT:?}"))?.map_err(|_| gone())?;
        if let Some(error) = answer.get("error") {
            bail!("{method} failed: {error}");
        }
        Ok(answer["result"].take())
    }
}

impl Drop for DevTools {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs until either side is gone; calls that still wait see their answer's sender dropped.
async fn serve(
    mut socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    mut calls: mpsc::Receiver<Call>,
    mut on_event: impl FnMut(&str, &Value),
) {
    let mut waiting: BTreeMap<u64, oneshot::Sender<Value>> = BTreeMap::new();
    let mut next_id = 1;
    loop {
        tokio::select! {
            call = calls.recv() => {
                let Some(Call { mut request, answer }) = call else { return };
                request["id"] = json!(next_id);
                waiting.insert(next_id, answer);
                next_id += 1;
                if socket.send(Message::text(request.to_string())).await.is_err() {
                    return;
                }
            }
            message = socket.next() => {
                let Some(Ok(message)) = message else { return };
                let Message::Text(text) = message else { continue };
                let Ok(message) = serde_json::from_str::<Value>(&text) else { return };
                if let Some(answer) = message["id"].as_u64().and_then(|id| waiting.remove(&id)) {
                    // A caller that gave up needs no answer.
                    answer.send(message).ok();
                } else if let Some(method) = message["method"].as_str() {
                    on_event(method, &message["params"]);
                }
            }
        }
    }
}
