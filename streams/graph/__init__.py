"""The graph agent: `tenant-log` to `drift-events` and `graph-windows`."""
