"""Benchmarks of the running pipeline: figures to read, never asserted. `make bench`, or `python -m bench NAME …`."""
