"""The DaemonSet process: measures this node, publishes its MemoryReport, serves metrics and health."""
