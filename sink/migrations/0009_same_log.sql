-- Which log it is that the offsets are of. A topic that was made anew has the same name and the same offsets: from next_offset on, records
-- would be written, and those before it never. The record that was written last says it: the same offset, another time.
ALTER TABLE nearby.sink_offsets
    ADD COLUMN last_offset bigint,
    ADD COLUMN last_appended_at timestamptz;

COMMENT ON COLUMN nearby.sink_offsets.last_offset IS
    'Offset of the last record that is in the database, next_offset - 1. Not so after next_offset was changed by hand: then nothing is compared.';
COMMENT ON COLUMN nearby.sink_offsets.last_appended_at IS
    'When that record was appended. A sink that finds another record there reads another log, and stops.';
