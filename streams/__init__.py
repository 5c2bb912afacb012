"""Kafka in, Kafka and ClickHouse out."""
