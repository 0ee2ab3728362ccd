// Reads events that Postwire has sent, and prints each once.
//
//   node consumer.mjs kafka BROKER TOPIC GROUP
//   node consumer.mjs nats URL STREAM DURABLE SUBJECT
import { HTTP, Kafka } from 'cloudevents';

// An event may come again: after a crash, or by a replay. Source and id name it.
// In memory that is enough for repeats that come soon; where none may ever pass,
// keep the pair where the work is kept, in the same transaction.
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
  process.once('SIGTERM', () => consumer.disconnect()); // it waits for the work under way, and commits
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

// The SDK's binding for Kafka cannot read a whole event in JSON that has no time,
// which not every event has; that for HTTP can.
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
    message.ack(); // after the work: what is not acknowledged comes again
  }
  await connection.drain();
}

// The SDK has no binding for NATS. That for HTTP spells attributes alike; values
// are percent-encoded in both, which this SDK leaves to its caller.
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
