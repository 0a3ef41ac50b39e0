"""The versions of the engines, each written once.

`docker-compose.yml` names the same engine versions, and a test compares them.
"""

from typing import Final

KAFKA: Final = "4.1.0"
SCALA: Final = "2.13"
"""The Scala release that this Kafka's artifact is named after."""
LOG4J: Final = "2.24.3"
"""Kafka logs through SLF4J and ships no binding of its own as a Maven dependency."""
CASSANDRA: Final = "5.0.5"
WEAVIATE: Final = "1.35.2"
MAVEN_DEPENDENCY_PLUGIN: Final = "3.8.1"
JAVA: Final = "17"
"""The newest Java that Cassandra 5.0 runs on; Kafka 4.1 asks for at least this one."""

IMAGES: Final = {
    "kafka": f"apache/kafka:{KAFKA}",
    "cassandra": f"cassandra:{CASSANDRA}",
    "weaviate": f"semitechnologies/weaviate:{WEAVIATE}",
}
"""The image of each engine, by the name of its service in `docker-compose.yml`."""
