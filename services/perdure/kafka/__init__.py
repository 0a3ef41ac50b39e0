"""The log on Kafka: CloudEvents on the wire, the journal, and what an agent process writes with."""
