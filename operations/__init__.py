"""The `metering` command: what a person runs. It may import everything; nothing imports it."""
