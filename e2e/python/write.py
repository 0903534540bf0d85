"""Writes a report of where a user is: python write.py BROKERS TOPIC USER LAT LON [SCHEMA_REGISTRY_URL]"""
import io, json, struct, sys, time, urllib.request, zlib
from confluent_kafka import Producer
from fastavro import parse_schema, schemaless_writer
from fastavro.schema import fingerprint, to_parsing_canonical_form

brokers, topic, user, lat, lon, registry = (sys.argv[1:] + [None])[:6]
with open("schemas/avro/location_event.avsc") as file:
    schema = json.load(file)
now = int(time.time() * 1000)
position = {"lat_e7": round(float(lat) * 1e7), "lon_e7": round(float(lon) * 1e7)}
event = {"user_id": int(user), "reported_at": now, "received_at": now, "position": position}

if registry:  # Confluent's format: 0, the schema's id
    body = json.dumps({"schema": json.dumps(schema)}).encode()
    request = urllib.request.Request(f"{registry}/subjects/{topic}-value/versions", body, {"Content-Type": "application/json"})
    header = struct.pack(">xI", json.load(urllib.request.urlopen(request))["id"])
else:  # Avro single object: C3 01, the schema's fingerprint
    header = b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
value = io.BytesIO(header)
value.seek(len(header))
schemaless_writer(value, parse_schema(schema), event)

# The default of librdkafka is CRC-32, which is not Java's: a user would have two partitions.
producer = Producer({"bootstrap.servers": brokers, "partitioner": "murmur2_random", "acks": "all"})
count = len(producer.list_topics(topic, timeout=5).topics[topic].partitions)

def delivered(error, message):
    if error:
        raise SystemExit(error)
    print(json.dumps({"partition": message.partition(), "default_would_be": zlib.crc32(user.encode()) % count}))

producer.produce(topic, key=user, value=value.getvalue(), on_delivery=delivered)
producer.flush()
