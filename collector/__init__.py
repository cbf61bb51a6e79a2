"""The collector: takes usage events over HTTP and puts them on the stream. It only puts.

    bodies.py (bytes: size, gzip, lines) → metering/outgoing.py, cloudevents.py (the rules) → app.py (HTTP)
      → committer.py (group commit: thread, lock, clock) → lanes.py (what is put next; pure) → EventSink
      → submissions.py (how each event of a request ended) → answers.py (a result for each)

metrics.py counts, openapi.py describes; gunicorn_conf.py and wsgi.py serve it.
"""
