-- Which log it is that the offsets are of. A topic that was made anew has the same name and the same offsets: from next_offset on, records
-- would be written, and those before it never. The record that was written last says it: the same offset, another time.
ALTER TABLE nearby.sink_offsets
    ADD COLUMN last_offset bigint,
    ADD COLUMN last_timestamp_ms bigint;

COMMENT ON COLUMN nearby.sink_offsets.last_offset IS
    'Offset of the last record that is in the database, next_offset - 1. Not so after next_offset was changed by hand: then nothing is compared.';
COMMENT ON COLUMN nearby.sink_offsets.last_timestamp_ms IS
    'Kafka''s timestamp of that record, in ms since 1970. A sink that finds another record there reads another log, and stops.';

CREATE OR REPLACE VIEW nearby.latest_positions AS
SELECT user_id, reported_at, received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell
FROM (
    SELECT user_id, max(reported_at) AS reported_at
    FROM nearby.location_history
    WHERE lat IS NOT NULL
    GROUP BY user_id
) AS newest_at
CROSS JOIN LATERAL (
    SELECT
        received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell, topic, kafka_partition,
        min(kafka_offset) OVER of_log AS first_offset,
        min(received_at) OVER of_log AS first_received_at
    FROM nearby.location_history AS report
    WHERE report.user_id = newest_at.user_id AND report.reported_at = newest_at.reported_at AND lat IS NOT NULL
    WINDOW of_log AS (PARTITION BY topic, kafka_partition)
    ORDER BY kafka_offset DESC
    LIMIT 1
) AS newest
-- As the engine has it: a withdrawal counts at once, in the order of the log, whatever its time; and afterwards only
-- reports with a later time; so a repeated report is as old as the first of its time. Only one partition's offsets have an order,
-- and only of one log: an older one under the same name is told by the time at which gateways accepted its reports.
WHERE NOT EXISTS (
    SELECT
    FROM nearby.location_history AS withdrawal
    WHERE withdrawal.user_id = newest_at.user_id
        AND withdrawal.lat IS NULL
        AND (
            withdrawal.reported_at >= newest_at.reported_at
            OR (
                (withdrawal.topic, withdrawal.kafka_partition) = (newest.topic, newest.kafka_partition)
                AND withdrawal.kafka_offset > newest.first_offset
                AND withdrawal.received_at > newest.first_received_at - interval '10 minutes'
            )
        )
);
