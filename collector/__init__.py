"""The collector: takes usage events over HTTP and puts them on the stream. It only puts.

app.py (HTTP) → committer.py (group commit: thread, lock, clock) → lanes.py (what is put next; pure) → EventSink.
"""
