"""The language that collector, consumer and billing share: events, positions, rows, settings, errors, adapters.

Pure modules (events, envelopes, positions, partitions, aggregation, rows, errors) do no I/O and import no client
library. Adapters (kinesis, dynamodb) and their in-memory twins (memory) stand behind the ports in ports.py.
"""
