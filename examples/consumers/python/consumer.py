"""Reads events from Postwire, and prints every event once.

python consumer.py kafka BROKER TOPIC GROUP
python consumer.py nats URL STREAM DURABLE SUBJECT
"""

import asyncio
import json
import signal
import sys
from collections import OrderedDict

from cloudevents.core.bindings import http, kafka

# Delivery is at-least-once: after a crash or a replay, an event arrives again with
# the same source and id. This program keeps recent pairs of source and id in memory.
# To drop every duplicate, store the pair in the same transaction as the result of
# the work.
seen = OrderedDict()


def handle(event):
    key = (event.get_source(), event.get_id())
    if key in seen:
        return
    line = {"source": key[0], "id": key[1], "type": event.get_type(), "title": event.get_data()["title"]}
    print(json.dumps(line), flush=True)  # the work
    seen[key] = True
    if len(seen) > 10_000:
        seen.popitem(last=False)


async def from_kafka(stop, broker, topic, group):
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=broker, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        while not stop.is_set():
            batches = await consumer.getmany(timeout_ms=500)
            for records in batches.values():
                for r in records:
                    handle(kafka.from_kafka_event(kafka.KafkaMessage(dict(r.headers), r.key, r.value)))
            if batches:
                await consumer.commit()  # after the work: an uncommitted record is delivered again
    finally:
        await consumer.stop()


async def from_nats(stop, url, stream, durable, subject):
    import nats

    connection = await nats.connect(url)
    subscription = await connection.jetstream().pull_subscribe(subject, durable=durable, stream=stream)
    while not stop.is_set():
        try:
            messages = await subscription.fetch(64, timeout=0.5)
        except nats.errors.TimeoutError:
            continue
        for m in messages:
            # The SDK has no NATS binding. The HTTP binding has equal header names
            # and an equal encoding of values.
            handle(http.from_http_event(http.HTTPMessage(m.headers, m.data)))
            await m.ack()  # after the work: an unacknowledged message is delivered again
    await connection.flush()  # sends the last acknowledgements
    await connection.close()


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await {"kafka": from_kafka, "nats": from_nats}[sys.argv[1]](stop, *sys.argv[2:])
    print("stopped", file=sys.stderr)


asyncio.run(main())
