COMMENT ON SCHEMA nearby IS 'Movement history of the nearby friends system, written by `nearby sink`. Times are UTC moments.';

CREATE TABLE nearby.location_history (
    user_id         bigint           NOT NULL,
    reported_at     timestamptz      NOT NULL,
    received_at     timestamptz      NOT NULL,
    lat             double precision,
    lon             double precision,
    accuracy_m      real,
    speed_mps       real,
    heading_deg     real,
    cell            bigint,
    topic           text             NOT NULL,
    kafka_partition integer          NOT NULL,
    kafka_offset    bigint           NOT NULL,
    PRIMARY KEY (reported_at, topic, kafka_partition, kafka_offset)
) PARTITION BY RANGE (reported_at);

CREATE INDEX location_history_user ON nearby.location_history (user_id, reported_at);
-- Few rows: who withdrew, and when.
CREATE INDEX location_history_withdrawal ON nearby.location_history (user_id, reported_at) WHERE lat IS NULL;

COMMENT ON TABLE nearby.location_history IS
    'Every record of the topic location-events once, in one partition (location_history_YYYYMMDD) per UTC day of reported_at. A report that a client sent twice is two rows; the views count it once.';
COMMENT ON COLUMN nearby.location_history.user_id IS 'Who.';
COMMENT ON COLUMN nearby.location_history.reported_at IS 'When, by the client''s clock.';
COMMENT ON COLUMN nearby.location_history.received_at IS 'When a gateway accepted the report.';
COMMENT ON COLUMN nearby.location_history.lat IS 'Latitude in degrees, WGS 84. Null, as all place columns, when the user stopped sharing.';
COMMENT ON COLUMN nearby.location_history.lon IS 'Longitude in degrees, WGS 84.';
COMMENT ON COLUMN nearby.location_history.accuracy_m IS 'Radius of uncertainty in metres, if the client said.';
COMMENT ON COLUMN nearby.location_history.speed_mps IS 'Speed in metres per second, if the client said.';
COMMENT ON COLUMN nearby.location_history.heading_deg IS 'Heading in degrees clockwise from true north, if the client said.';
COMMENT ON COLUMN nearby.location_history.cell IS 'H3 index at resolution 9 (hexagons of about 0.1 km²) as a 64-bit number.';
COMMENT ON COLUMN nearby.location_history.topic IS 'Kafka topic that the row came from.';
COMMENT ON COLUMN nearby.location_history.kafka_partition IS 'Partition of the topic.';
COMMENT ON COLUMN nearby.location_history.kafka_offset IS 'Offset in the partition.';

CREATE TABLE nearby.sink_offsets (
    topic           text    NOT NULL,
    kafka_partition integer NOT NULL,
    next_offset     bigint  NOT NULL,
    PRIMARY KEY (topic, kafka_partition)
);

COMMENT ON TABLE nearby.sink_offsets IS
    'How far the sink has come, written in the same transaction as the rows. A sink starts from here, not from Kafka''s committed offsets.';
COMMENT ON COLUMN nearby.sink_offsets.topic IS 'Kafka topic.';
COMMENT ON COLUMN nearby.sink_offsets.kafka_partition IS 'Partition of the topic.';
COMMENT ON COLUMN nearby.sink_offsets.next_offset IS 'Offset of the first record that is not in the database yet.';

CREATE TABLE nearby.friend_lists (
    user_id    bigint      PRIMARY KEY,
    friends    bigint[]    NOT NULL,
    changed_at timestamptz NOT NULL
);

COMMENT ON TABLE nearby.friend_lists IS 'The newest friend list of every user, from the topic friend-lists.';
COMMENT ON COLUMN nearby.friend_lists.user_id IS 'Whose list it is.';
COMMENT ON COLUMN nearby.friend_lists.friends IS 'Whom this user may see. A friendship is two lists.';
COMMENT ON COLUMN nearby.friend_lists.changed_at IS 'When the list was accepted.';
