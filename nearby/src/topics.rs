//! `nearby topics create|check|clean`.

mod clean;

use anyhow::bail;
use nearby_schemas::topics::{PARTITIONS_DEFAULT, TopicSpec};
use nearby_service::kafka::Kafka;
use nearby_service::settings::KafkaSettings;

/// What to do about the topics.
#[derive(clap::Subcommand)]
pub enum TopicsCommand {
    /// Create the topics that are missing; existing ones are left as they are
    Create(TopicsSettings),
    /// Name every difference between the topics and what they have to be; exit code 1 if there is one
    Check(TopicsSettings),
    /// Remove the topics of gateways that were lost a day ago, and name each
    Clean(clean::CleanSettings),
}

/// Settings of `nearby topics`.
#[derive(clap::Args)]
pub struct TopicsSettings {
    #[command(flatten)]
    kafka: KafkaSettings,
    /// Partitions of the topics that are partitioned by user; cannot be changed later
    #[arg(long, env = "NEARBY_PARTITIONS", default_value_t = PARTITIONS_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
}

impl TopicsSettings {
    async fn connect(&self) -> anyhow::Result<(Kafka, Vec<TopicSpec>)> {
        let kafka = Kafka::from_settings(&self.kafka);
        crate::wiring::check_broker(&kafka).await?;
        let specs = kafka.topics.standing(self.partitions);
        Ok((kafka, specs))
    }
}

/// Creates or checks.
pub async fn topics(command: TopicsCommand) -> anyhow::Result<()> {
    match command {
        TopicsCommand::Create(settings) => {
            let (kafka, _) = settings.connect().await?;
            for (topic, new) in kafka.create_standing_topics(settings.partitions).await? {
                println!("{topic} {}", if new { "created" } else { "was there already" });
            }
            Ok(())
        }
        TopicsCommand::Check(settings) => {
            let (kafka, specs) = settings.connect().await?;
            let mut differences = Vec::new();
            for topic in &specs {
                differences.extend(kafka.topic_differences(topic).await?);
            }
            for difference in &differences {
                println!("{difference}");
            }
            if !differences.is_empty() {
                bail!("{} differences; nothing was changed", differences.len());
            }
            println!("{} topics are as they have to be", specs.len());
            Ok(())
        }
        TopicsCommand::Clean(settings) => clean::clean(settings).await,
    }
}
