"""The bill over HTTP: reads what the consumer has written, writes nothing.

    app ─► parameters (what was asked), freshness (how current the answer is), answers (exact JSON)
     ├► usage (totals, ranges, windows) ─► ranges (which windows), as_of (waits for later figures), forms (JSON or CSV)
     ├► events (one event) ─► event_status
     ├► invoices ─► invoicing (a month's invoice) ─► rating (a price) ─► plans ◄─ plans_file
     └► status (the shards)
    wsgi, gunicorn_conf: how it is served

Reads only through metering.ports.BillingReader. Never imports collector or consumer.
"""
