// Sends events of an agent with nothing but a Kafka client, then asks what became of them:
//     node producer.mjs http://127.0.0.1:8787 airline/mia
import { randomUUID } from "node:crypto";
import { Kafka, Partitioners } from "kafkajs";

const [gateway, agent] = process.argv.slice(2);
const { kafka, topics } = await (await fetch(`${gateway}/v1/cluster`)).json();

// What makes an event; `id` makes it that event: sent again with the same id, it is recorded once.
const event = (type, data) => ({
  specversion: "1.0",
  id: randomUUID(),
  source: "/bookings",
  type,
  subject: agent,
  time: new Date().toISOString(),
  data,
});

// One event: its attributes are headers, its data is the value.
function binary({ data, ...attributes }) {
  const headers = { "content-type": "application/json" };
  for (const [name, value] of Object.entries(attributes)) headers[`ce_${name}`] = value;
  return { key: agent, headers, value: JSON.stringify(data ?? null) };
}

// One event as one JSON object.
function structured(event) {
  const headers = { "content-type": "application/cloudevents+json" };
  return { key: agent, headers, value: JSON.stringify(event) };
}

// Several events that are recorded together or not at all.
function batch(events) {
  const headers = { "content-type": "application/cloudevents-batch+json" };
  return { key: agent, headers, value: JSON.stringify(events) };
}

const producer = new Kafka({ clientId: "bookings", brokers: kafka.split(",") }).producer({
  createPartitioner: Partitioners.DefaultPartitioner, // murmur2: an agent's events in one partition
});
await producer.connect();
const messages = [
  binary(event("message.added", { role: "user", content: "A seat, please." })),
  structured(event("seat.wanted", { row: 12, place: "aisle" })),
  batch([event("seat.held", { seat: "12C" }), event("seat.paid", null)]),
];
const acks = -1; // acknowledged by all replicas that are in sync: now it can't be lost
for (const message of messages) {
  const [{ partition, baseOffset }] = await producer.send({
    topic: topics.events,
    acks,
    messages: [message],
  });
  const { entry } = await (await fetch(`${gateway}/v1/verdicts/${partition}/${baseOffset}`)).json();
  const sequences = (entry.events ?? []).map((recorded) => Number(recorded.sequence));
  console.log(entry.outcome, ...sequences, entry.error?.message ?? "");
}
await producer.disconnect();
