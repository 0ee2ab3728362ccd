// Reads events from Postwire, and prints every event once.
//
//   node consumer.mjs kafka BROKER TOPIC GROUP
//   node consumer.mjs nats URL STREAM DURABLE SUBJECT
import { HTTP, Kafka } from 'cloudevents';

// Delivery is at-least-once: after a crash or a replay, an event arrives again with
// the same source and id. This program keeps recent pairs of source and id in memory.
// To drop every duplicate, store the pair in the same transaction as the result of
// the work.
const seen = new Set();

function handle(event) {
  const key = JSON.stringify([event.source, event.id]);
  if (seen.has(key)) return;
  console.log(JSON.stringify({ source: event.source, id: event.id, type: event.type, title: event.data.title })); // the work
  seen.add(key);
  if (seen.size > 10000) seen.delete(seen.values().next().value);
}

async function kafka([broker, topic, groupId]) {
  const { Kafka: Client, logLevel } = await import('kafkajs');
  const consumer = new Client({ brokers: [broker], logLevel: logLevel.ERROR }).consumer({ groupId });
  process.once('SIGTERM', () => consumer.disconnect()); // waits for the message in progress, and commits
  const stopped = new Promise((resolve) => consumer.on('consumer.disconnect', resolve));
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await consumer.run({
    eachMessage: async ({ message }) => {
      const headers = Object.fromEntries(Object.entries(message.headers).map(([name, value]) => [name, value.toString()]));
      handle(kafkaEvent(headers, message.key?.toString(), message.value.toString()));
    },
  });
  await stopped;
}

// The SDK's Kafka binding cannot read a structured event without time. The SDK's HTTP
// binding can.
function kafkaEvent(headers, key, value) {
  const structured = headers['content-type']?.startsWith('application/cloudevents');
  return structured ? HTTP.toEvent({ headers, body: value }) : Kafka.toEvent({ headers, key, value });
}

async function nats([servers, stream, durable, subject]) {
  const { connect } = await import('@nats-io/transport-node');
  const { AckPolicy, jetstream, jetstreamManager } = await import('@nats-io/jetstream');
  const connection = await connect({ servers });
  const manager = await jetstreamManager(connection);
  await manager.consumers.add(stream, { durable_name: durable, ack_policy: AckPolicy.Explicit, filter_subject: subject });
  const messages = await (await jetstream(connection).consumers.get(stream, durable)).consume();
  process.once('SIGTERM', () => messages.close());
  for await (const message of messages) {
    handle(natsEvent(message));
    message.ack(); // after the work: an unacknowledged message is delivered again
  }
  await connection.drain();
}

// The SDK has no NATS binding. The HTTP binding has equal header names. NATS values are
// percent-encoded, and the SDK does not decode values.
function natsEvent(message) {
  const headers = {};
  for (const [name, [value]] of message.headers) {
    if (name === 'content-type') headers[name] = value;
    else if (name.startsWith('ce-') && name !== 'ce-datacontenttype') headers[name] = decodeURIComponent(value);
  }
  return HTTP.toEvent({ headers, body: message.string() });
}

const [broker, ...args] = process.argv.slice(2);
await { kafka, nats }[broker](args);
console.error('stopped');
