"""The consumer: from the stream to the tables. It applies and does nothing else.

    supervisor ── starts ──► MultiLangDaemon (JVM, the KCL) ── one for each shard ──► child (Python)

launch.py and supervisor.py run the daemon, and put right in the KCL's tables what the KCL does not: lost_records.py
before each start, leader_watcher.py beside it, by the rules of takeover.py and handoff.py. child.py is what the daemon
runs; record_processor.py speaks the KCL's interface; pipeline.py is the order of the steps of one batch, and knows
nothing of the KCL.
"""
