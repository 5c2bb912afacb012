"""Pure judgement over graphs of services: no Kafka, no ClickHouse, no clock, no environment."""
