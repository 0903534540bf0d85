//! What an operator may choose about the rules.

/// Settings of the rules; every engine of a cluster must have the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineSettings {
    /// Great-circle distance up to which, inclusive, a friend is near, in metres.
    pub radius_m: f64,
    /// Age up to which, inclusive, a position counts, in milliseconds.
    pub inactive_after_ms: i64,
    /// How far a gateway's newest heartbeat may be behind the newest of all before it is lost, in milliseconds.
    pub gateway_lost_after_ms: i64,
}

impl Default for EngineSettings {
    fn default() -> EngineSettings {
        EngineSettings { radius_m: 8_000.0, inactive_after_ms: 600_000, gateway_lost_after_ms: 30_000 }
    }
}
