"""`drift-events` and `graph-windows` to ClickHouse."""
