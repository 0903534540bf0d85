//! Readiness: what a process still waits for, by part.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by the parts of one process; ready when every part that ever said something is.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    waiting_for: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

impl Readiness {
    /// `part` does what it should.
    pub fn ready(&self, part: &'static str) {
        self.set(part, None);
    }

    /// `part` cannot work now, because.
    pub fn not_ready(&self, part: &'static str, because: impl Into<String>) {
        self.set(part, Some(because.into()));
    }

    /// What is not ready, each with its reason.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        let parts = self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter_map(|(part, because)| because.clone().map(|because| (*part, because))).collect()
    }

    fn set(&self, part: &'static str, because: Option<String>) {
        let mut parts = self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner);
        let before = parts.insert(part, because.clone());
        match (before, because) {
            (Some(None), Some(because)) => tracing::warn!(part, because, "no longer ready"),
            (Some(Some(_)), None) => tracing::info!(part, "ready"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_part_is() {
        let readiness = Readiness::default();
        readiness.not_ready("kafka", "no broker");
        readiness.ready("state");
        assert_eq!(readiness.missing(), [("kafka", "no broker".to_owned())]);
        readiness.ready("kafka");
        assert!(readiness.missing().is_empty());
    }
}
