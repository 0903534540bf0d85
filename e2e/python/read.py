"""Prints what a topic holds now, a line of JSON a record: python read.py BROKERS TOPIC [SCHEMA_REGISTRY_URL]"""
import glob, io, json, struct, sys, urllib.request
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from fastavro import parse_schema, schemaless_reader
from fastavro.schema import fingerprint, to_parsing_canonical_form

brokers, topic, registry = (sys.argv[1:] + [None])[:3]
by_fingerprint, by_id = {}, {}
for path in glob.glob("schemas/avro/history/*.avsc"):
    with open(path) as file:
        schema = json.load(file)
    by_fingerprint[bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))] = parse_schema(schema)

def decode(value):
    if value is None:  # a tombstone: the key is gone
        return None
    if value[:2] == b"\xc3\x01":  # Avro single object
        schema, datum = by_fingerprint[value[2:10]], value[10:]
    else:  # Confluent's format
        (id,) = struct.unpack(">xI", value[:5])
        if id not in by_id:
            answer = json.load(urllib.request.urlopen(f"{registry}/schemas/ids/{id}"))
            by_id[id] = parse_schema(json.loads(answer["schema"]))
        schema, datum = by_id[id], value[5:]
    return schemaless_reader(io.BytesIO(datum), schema)

consumer = Consumer({"bootstrap.servers": brokers, "group.id": "reader", "enable.auto.commit": False, "enable.partition.eof": True})
unread = set(consumer.list_topics(topic, timeout=5).topics[topic].partitions)
consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unread])
while unread:
    message = consumer.poll(1)
    if message is None:
        continue
    if message.error():
        if message.error().code() != KafkaError._PARTITION_EOF:
            raise SystemExit(message.error())
        unread.discard(message.partition())
        continue
    key = message.key() and message.key().decode()
    record = {"partition": message.partition(), "offset": message.offset(), "key": key, "value": decode(message.value())}
    print(json.dumps(record, default=lambda time: round(time.timestamp() * 1000)))
consumer.close()
