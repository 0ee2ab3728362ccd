import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.cloudevents.CloudEvent;
import io.cloudevents.SpecVersion;
import io.cloudevents.core.data.BytesCloudEventData;
import io.cloudevents.core.message.impl.BaseGenericBinaryMessageReaderImpl;
import io.cloudevents.core.message.impl.GenericStructuredMessageReader;
import io.cloudevents.core.message.impl.MessageUtils;
import io.cloudevents.kafka.CloudEventDeserializer;
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.Options;
import io.nats.client.PullSubscribeOptions;
import io.nats.client.impl.Headers;
import java.io.IOException;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.BiConsumer;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Reads events from Postwire, and prints every event once.
 *
 * <pre>
 * java -cp 'target/classes:target/lib/*' Consumer kafka BROKER TOPIC GROUP
 * java -cp 'target/classes:target/lib/*' Consumer nats URL STREAM DURABLE SUBJECT
 * </pre>
 */
public class Consumer {
  private static final ObjectMapper JSON = new ObjectMapper();
  private static volatile boolean stop;

  // Delivery is at-least-once: after a crash or a replay, an event arrives again with
  // the same source and id. This program keeps recent pairs of source and id in memory.
  // To drop every duplicate, store the pair in the same transaction as the result of
  // the work.
  private static final Set<List<String>> SEEN = Collections.newSetFromMap(new LinkedHashMap<>() {
    @Override
    protected boolean removeEldestEntry(Map.Entry<List<String>, Boolean> eldest) {
      return size() > 10_000;
    }
  });

  static void handle(CloudEvent e) throws IOException {
    List<String> key = List.of(e.getSource().toString(), e.getId());
    if (SEEN.contains(key)) {
      return;
    }
    JsonNode data = JSON.readTree(e.getData().toBytes());
    System.out.println(JSON.createObjectNode() // the work
        .put("source", key.get(0)).put("id", key.get(1)).put("type", e.getType()).put("title", data.path("title").asText()));
    SEEN.add(key);
  }

  static void kafka(String broker, String topic, String group) throws IOException {
    Map<String, Object> config = Map.of("bootstrap.servers", broker, "group.id", group,
        "auto.offset.reset", "earliest", "enable.auto.commit", false);
    try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new CloudEventDeserializer())) {
      consumer.subscribe(List.of(topic));
      while (!stop) {
        for (var record : consumer.poll(Duration.ofMillis(500))) {
          handle(record.value());
        }
        consumer.commitSync(); // after the work: an uncommitted record is delivered again
      }
    }
  }

  static void nats(String url, String stream, String durable, String subject) throws Exception {
    try (var connection = Nats.connect(Options.builder().server(url).build())) {
      var options = PullSubscribeOptions.builder().stream(stream).durable(durable).build();
      var subscription = connection.jetStream().subscribe(subject, options);
      while (!stop) {
        for (Message m : subscription.fetch(64, Duration.ofMillis(500))) {
          handle(event(m));
          m.ack(); // after the work: an unacknowledged message is delivered again
        }
      }
      connection.drain(Duration.ofSeconds(5)).get();
    }
  }

  // The SDK has no NATS binding: this reader maps NATS headers to attributes.
  static CloudEvent event(Message m) {
    Headers h = m.getHeaders();
    return MessageUtils.parseStructuredOrBinaryMessage(
        () -> h.getFirst("content-type"),
        format -> new GenericStructuredMessageReader(format, m.getData()),
        () -> h.getFirst("ce-specversion"),
        version -> new Binary(version, h, m.getData())).toEvent();
  }

  static class Binary extends BaseGenericBinaryMessageReaderImpl<String, String> {
    private final Headers headers;

    Binary(SpecVersion version, Headers headers, byte[] data) {
      super(version, BytesCloudEventData.wrap(data));
      this.headers = headers;
    }

    @Override
    protected boolean isContentTypeHeader(String name) {
      return name.equals("content-type");
    }

    @Override
    protected boolean isCloudEventsHeader(String name) {
      return name.startsWith("ce-") && !name.equals("ce-datacontenttype");
    }

    @Override
    protected String toCloudEventsKey(String name) {
      return name.substring("ce-".length());
    }

    @Override
    protected void forEachHeader(BiConsumer<String, String> f) {
      headers.forEach((name, values) -> f.accept(name, values.get(0)));
    }

    @Override
    protected String toCloudEventsValue(String value) { // the value is percent-encoded
      return URLDecoder.decode(value.replace("+", "%2B"), StandardCharsets.UTF_8);
    }
  }

  public static void main(String[] args) throws Exception {
    Thread main = Thread.currentThread();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> { // on SIGTERM
      stop = true;
      try {
        main.join();
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }));
    if (args[0].equals("kafka")) {
      kafka(args[1], args[2], args[3]);
    } else {
      nats(args[1], args[2], args[3], args[4]);
    }
    System.err.println("stopped");
  }
}
