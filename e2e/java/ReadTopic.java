import com.fasterxml.jackson.databind.ObjectMapper;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.message.SchemaStore;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;

/** Prints what a topic holds now, a line of JSON a record: java -cp 'LIBS/*' ReadTopic.java BROKERS TOPIC [SCHEMA_REGISTRY_URL] */
public class ReadTopic {
    static final SchemaStore.Cache BY_FINGERPRINT = new SchemaStore.Cache();
    static final Map<Integer, Schema> BY_ID = new HashMap<>();
    static String registry;

    public static void main(String[] args) throws Exception {
        registry = args.length > 2 ? args[2] : null;
        try (var files = Files.newDirectoryStream(Path.of("schemas/avro/history"), "*.avsc")) {
            for (Path file : files) BY_FINGERPRINT.addSchema(new Schema.Parser().parse(file.toFile()));
        }
        Map<String, Object> settings = Map.of("bootstrap.servers", args[0], "enable.auto.commit", false);
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = new ArrayList<>();
            consumer.partitionsFor(args[1]).forEach(info -> partitions.add(new TopicPartition(info.topic(), info.partition())));
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            var ends = consumer.endOffsets(partitions);
            while (partitions.stream().anyMatch(partition -> consumer.position(partition) < ends.get(partition))) {
                for (var record : consumer.poll(Duration.ofMillis(200))) {
                    String key = record.key() == null ? "null" : '"' + record.key() + '"';
                    System.out.printf("{\"partition\":%d,\"offset\":%d,\"key\":%s,\"value\":%s}%n",
                        record.partition(), record.offset(), key, decode(record.value()));
                }
            }
        }
    }

    /** A GenericRecord, whose text is JSON; null is a tombstone. */
    static Object decode(byte[] value) throws Exception {
        if (value == null) return null;
        ByteBuffer bytes = ByteBuffer.wrap(value);
        Schema schema;
        if (value[0] == (byte) 0xC3 && value[1] == 1) { // Avro single object
            schema = BY_FINGERPRINT.findByFingerprint(bytes.order(ByteOrder.LITTLE_ENDIAN).position(2).getLong());
        } else { // Confluent's format
            int id = bytes.position(1).getInt();
            if (!BY_ID.containsKey(id)) {
                var answer = new ObjectMapper().readTree(URI.create(registry + "/schemas/ids/" + id).toURL().openStream());
                BY_ID.put(id, new Schema.Parser().parse(answer.get("schema").asText()));
            }
            schema = BY_ID.get(id);
        }
        var datum = DecoderFactory.get().binaryDecoder(value, bytes.position(), bytes.remaining(), null);
        return new GenericDatumReader<>(schema).read(null, datum);
    }
}
