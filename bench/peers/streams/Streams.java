import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueBytesStoreSupplier;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * Nearby friends as Kafka Streams wants them: a report is joined with the list of who may see its user, one record for each of
 * these (and one for the user) goes to the viewer's partition, and there a store has each viewer's place and those of the friends.
 *
 * Records are fixed binary, big-endian: report {lat int, lon int, due long}, list {user long}..., notification {friend long, lat int,
 * lon int, distance in decimetres int, -1 when the friend left, due long}. Keys are users, long. Topics begin with the name.
 */
public class Streams {
    static final double RADIUS_M = 8000, EARTH_RADIUS_M = 6371008.8;
    /** Farther north or south than this is farther than the radius. */
    static final int LAT_MAX_E7 = 719_500;
    static final int UNKNOWN = Integer.MIN_VALUE;
    /** Of the viewer's place, and of a friend with place, in the store. */
    static final int HEAD_BYTES = 8, FRIEND_BYTES = 16;

    public static void main(String[] arguments) throws Exception {
        String brokers = arguments[0], name = arguments[1], store = arguments[2], folder = arguments[3], threads = arguments[4];
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, name);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, folder);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, "0");
        // The bench looks at what is committed to see what is done.
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, "1000");
        settings.put(StreamsConfig.producerPrefix("acks"), "1");
        settings.put(StreamsConfig.producerPrefix("linger.ms"), "5");
        settings.put(StreamsConfig.producerPrefix("batch.size"), "131072");
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        settings.put(StreamsConfig.consumerPrefix("max.poll.records"), "5000");
        KafkaStreams streams = new KafkaStreams(topology(name, store.equals("rocksdb")).build(), settings);
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.RUNNING) System.out.println("ready");
            if (now == KafkaStreams.State.ERROR) System.exit(1);
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }

    static StreamsBuilder topology(String name, boolean rocksdb) {
        Serde<Long> user = Serdes.Long();
        Serde<byte[]> bytes = Serdes.ByteArray();
        StreamsBuilder builder = new StreamsBuilder();
        // Without changelogs: whoever loses a store here loses what was shown. Cheaper than in production.
        builder.addStateStore(Stores.keyValueStoreBuilder(supplier("views", rocksdb), user, bytes).withLoggingDisabled());
        var lists = builder.table(name + "-lists", Consumed.with(user, bytes),
            Materialized.<Long, byte[]>as(supplier("lists", rocksdb)).withKeySerde(user).withValueSerde(bytes).withLoggingDisabled());
        builder.stream(name + "-reports", Consumed.with(user, bytes))
            .join(lists, (report, list) -> new byte[][] {report, list})
            .flatMap(Streams::fanOut)
            .repartition(Repartitioned.with(user, bytes).withName("viewers"))
            .process(Views::new, "views")
            .to(name + "-notifications", Produced.with(user, bytes));
        return builder;
    }

    static KeyValueBytesStoreSupplier supplier(String name, boolean rocksdb) {
        return rocksdb ? Stores.persistentKeyValueStore(name) : Stores.inMemoryKeyValueStore(name);
    }

    static List<KeyValue<Long, byte[]>> fanOut(long user, byte[][] reportAndList) {
        ByteBuffer report = ByteBuffer.wrap(reportAndList[0]), list = ByteBuffer.wrap(reportAndList[1]);
        byte[] moved = ByteBuffer.allocate(24).putLong(user).put(report).array();
        List<KeyValue<Long, byte[]>> all = new ArrayList<>(list.remaining() / 8 + 1);
        all.add(KeyValue.pair(user, moved));
        while (list.hasRemaining()) all.add(KeyValue.pair(list.getLong(), moved));
        return all;
    }

    /** Keeps what each viewer sees, and tells what changes. */
    static class Views implements Processor<Long, byte[], Long, byte[]> {
        private ProcessorContext<Long, byte[]> context;
        private KeyValueStore<Long, byte[]> views;

        @Override
        public void init(ProcessorContext<Long, byte[]> context) {
            this.context = context;
            views = context.getStateStore("views");
        }

        @Override
        public void process(Record<Long, byte[]> record) {
            long viewer = record.key();
            ByteBuffer moved = ByteBuffer.wrap(record.value());
            long who = moved.getLong();
            int lat = moved.getInt(), lon = moved.getInt();
            long due = moved.getLong();
            byte[] held = views.get(viewer);
            if (held == null) held = ByteBuffer.allocate(HEAD_BYTES).putInt(UNKNOWN).putInt(UNKNOWN).array();
            // A copy: the store in memory gave its own.
            int at = who == viewer ? 0 : find(held, who);
            byte[] next = Arrays.copyOf(held, who == viewer ? held.length : Math.max(held.length, at + FRIEND_BYTES));
            ByteBuffer view = ByteBuffer.wrap(next);
            int ownLat = view.getInt(0), ownLon = view.getInt(4);
            if (who == viewer) {
                view.putInt(0, lat).putInt(4, lon);
                for (int friend = HEAD_BYTES; friend < held.length; friend += FRIEND_BYTES) {
                    int friendLat = view.getInt(friend + 8), friendLon = view.getInt(friend + 12);
                    boolean wasNear = isNear(ownLat, ownLon, friendLat, friendLon);
                    boolean isNear = isNear(lat, lon, friendLat, friendLon);
                    if (isNear != wasNear) {
                        tell(record, viewer, view.getLong(friend), friendLat, friendLon, isNear ? decimetres(lat, lon, friendLat, friendLon) : -1, 0);
                    }
                }
            } else {
                boolean wasNear = at < held.length && isNear(ownLat, ownLon, view.getInt(at + 8), view.getInt(at + 12));
                boolean isNear = isNear(ownLat, ownLon, lat, lon);
                view.putLong(at, who).putInt(at + 8, lat).putInt(at + 12, lon);
                if (isNear || wasNear) {
                    tell(record, viewer, who, lat, lon, isNear ? decimetres(ownLat, ownLon, lat, lon) : -1, due);
                }
            }
            views.put(viewer, next);
        }

        private void tell(Record<Long, byte[]> record, long viewer, long friend, int lat, int lon, int decimetres, long due) {
            byte[] told = ByteBuffer.allocate(28).putLong(friend).putInt(lat).putInt(lon).putInt(decimetres).putLong(due).array();
            context.forward(record.withKey(viewer).withValue(told));
        }

        /** Where the friend is in the viewer's bytes, or their end. */
        private static int find(byte[] held, long friend) {
            ByteBuffer view = ByteBuffer.wrap(held);
            int at = HEAD_BYTES;
            while (at < held.length && view.getLong(at) != friend) at += FRIEND_BYTES;
            return at;
        }
    }

    static boolean isNear(int lat, int lon, int otherLat, int otherLon) {
        if (lat == UNKNOWN || otherLat == UNKNOWN || Math.abs((long) lat - otherLat) > LAT_MAX_E7) return false;
        return metres(lat, lon, otherLat, otherLon) <= RADIUS_M;
    }

    static int decimetres(int lat, int lon, int otherLat, int otherLon) {
        return (int) Math.round(metres(lat, lon, otherLat, otherLon) * 10);
    }

    /** Haversine. */
    static double metres(int latE7, int lonE7, int otherLatE7, int otherLonE7) {
        double halfLat = Math.sin(Math.toRadians(((long) latE7 - otherLatE7) / 1e7) / 2);
        double halfLon = Math.sin(Math.toRadians(((long) lonE7 - otherLonE7) / 1e7) / 2);
        double both = Math.cos(Math.toRadians(latE7 / 1e7)) * Math.cos(Math.toRadians(otherLatE7 / 1e7));
        double h = halfLat * halfLat + both * halfLon * halfLon;
        return 2 * EARTH_RADIUS_M * Math.asin(Math.sqrt(Math.min(1, h)));
    }
}
