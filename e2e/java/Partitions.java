import java.util.*;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;

/** Writes an empty record for each key on standard input and says on which partition it is: KEY PARTITION. */
public class Partitions {
    public static void main(String[] args) throws Exception {
        Map<String, Object> settings = Map.of("bootstrap.servers", args[0]);
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            Map<String, Future<RecordMetadata>> written = new LinkedHashMap<>();
            for (var keys = new Scanner(System.in); keys.hasNext(); ) {
                String key = keys.next();
                written.put(key, producer.send(new ProducerRecord<>(args[1], key, new byte[0])));
            }
            for (var each : written.entrySet()) System.out.println(each.getKey() + " " + each.getValue().get().partition());
        }
    }
}
