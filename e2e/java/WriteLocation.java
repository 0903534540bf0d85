import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.*;
import java.net.URI;
import java.net.http.*;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.*;
import org.apache.avro.io.EncoderFactory;
import org.apache.avro.message.BinaryMessageEncoder;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;

/** Writes a report of where a user is: java -cp 'LIBS/*' WriteLocation.java BROKERS TOPIC USER LAT LON [SCHEMA_REGISTRY_URL] */
public class WriteLocation {
    public static void main(String[] args) throws Exception {
        String brokers = args[0], topic = args[1], user = args[2];
        Schema schema = new Schema.Parser().parse(new File("schemas/avro/location_event.avsc"));
        long now = System.currentTimeMillis();
        var position = new GenericRecordBuilder(schema.getField("position").schema().getTypes().get(1))
            .set("lat_e7", (int) Math.round(Double.parseDouble(args[3]) * 1e7))
            .set("lon_e7", (int) Math.round(Double.parseDouble(args[4]) * 1e7));
        var event = new GenericRecordBuilder(schema)
            .set("user_id", Long.parseLong(user)).set("reported_at", now).set("received_at", now)
            .set("position", position.build()).build();

        var value = new ByteArrayOutputStream();
        if (args.length > 5) { // Confluent's format: 0, the schema's id
            var json = new ObjectMapper();
            var body = HttpRequest.BodyPublishers.ofString(json.writeValueAsString(Map.of("schema", schema.toString())));
            var request = HttpRequest.newBuilder(URI.create(args[5] + "/subjects/" + topic + "-value/versions"))
                .header("Content-Type", "application/json").POST(body).build();
            var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body();
            var data = new DataOutputStream(value);
            data.writeByte(0);
            data.writeInt(json.readTree(answer).get("id").asInt());
            var encoder = EncoderFactory.get().directBinaryEncoder(value, null);
            new GenericDatumWriter<GenericRecord>(schema).write(event, encoder);
        } else { // Avro single object
            new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schema).encode(event, value);
        }

        // The default partitioner, with the user's decimal digits as key, is ours.
        Map<String, Object> settings = Map.of("bootstrap.servers", brokers);
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            var written = producer.send(new ProducerRecord<>(topic, user, value.toByteArray())).get();
            System.out.printf("{\"partition\":%d}%n", written.partition());
        }
    }
}
