"""The only place that knows confluent-kafka."""
