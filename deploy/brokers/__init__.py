"""Kafka brokers that we start ourselves: Tansu (no Java, in memory) and Apache Kafka from Maven artifacts."""
