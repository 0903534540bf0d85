//! librdkafka's mock cluster in this process: enough of Kafka for a demo, and no Java.

use anyhow::Context;
use nearby_schemas::topics::TopicSpec;
use nearby_service::kafka::Kafka;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// A running mock cluster; it ends, and forgets, when it is dropped.
pub struct EmbeddedKafka {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl EmbeddedKafka {
    /// Starts one broker on a free port of the loopback.
    pub fn start() -> anyhow::Result<EmbeddedKafka> {
        let cluster = MockCluster::new(1).context("starting embedded Kafka")?;
        Ok(EmbeddedKafka { cluster })
    }

    /// The mock cluster has no topic admin: topics are made through its handle.
    pub fn create_topics(&self, specs: &[TopicSpec]) -> anyhow::Result<()> {
        for topic in specs {
            let created = self.cluster.create_topic(&topic.name, topic.partitions, 1);
            created.with_context(|| format!("creating topic {} in embedded Kafka", topic.name))?;
        }
        Ok(())
    }

    /// How to reach it.
    pub fn access(&self, prefix: &str) -> Kafka {
        Kafka::embedded_at(self.cluster.bootstrap_servers(), prefix)
    }
}
