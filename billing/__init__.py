"""The bill over HTTP: reads what the consumer has written, writes nothing but voids. And alerts, which it records.

    app ─► parameters (what was asked), freshness (how current the answer is), answers (exact JSON)
     ├► usage (totals, ranges, windows) ─► ranges (which windows), as_of (waits for later figures), forms (JSON or CSV)
     │           └► meters (usage by aggregation, unit; the list of meters)
     ├► events (one event) ─► event_status
     ├► invoices ─► invoicing (a month's invoice) ─► rating (a price) ─► plans ◄─ plans_file
     ├► alert_list (what was crossed), quotas (what is left) ─► alerts (which usage is watched) ◄─ alerts_file
     └► status (the shards)
    alerting (`metering alerts run`: looks, records, resolves, posts) ─► alerts, alert_forms (as JSON), webhook
    wsgi, gunicorn_conf: how it is served

Reads only through metering.ports.BillingReader. Never imports collector or consumer.
"""
