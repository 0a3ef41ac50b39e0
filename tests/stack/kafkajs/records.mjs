// Sends records as they come on standard input, a JSON object a line with topic, key, value and
// headers (each text, or base64 in an object), and prints where each of them is.
import { createInterface } from "node:readline";
import { CompressionTypes, Kafka, Partitioners, logLevel } from "kafkajs";

const [brokers, compression = "None"] = process.argv.slice(2);
const bytes = (value) => (value?.base64 === undefined ? value : Buffer.from(value.base64, "base64"));
const client = new Kafka({ brokers: brokers.split(","), logLevel: logLevel.ERROR });
const producer = client.producer({ createPartitioner: Partitioners.DefaultPartitioner });
await producer.connect();
for await (const line of createInterface({ input: process.stdin })) {
  const { topic, key, value, headers } = JSON.parse(line);
  const named = Object.entries(headers).map(([name, header]) => [name, bytes(header)]);
  const message = { key: bytes(key), value: bytes(value), headers: Object.fromEntries(named) };
  const [{ partition, baseOffset }] = await producer.send({
    topic,
    acks: -1,
    compression: CompressionTypes[compression],
    messages: [message],
  });
  console.log(JSON.stringify([partition, Number(baseOffset)]));
}
await producer.disconnect();
