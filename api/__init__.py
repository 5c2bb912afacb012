"""HTTP over ClickHouse."""
