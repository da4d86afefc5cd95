"""The runner: the small process that starts, reaps and logs jobs, and outlives the daemon.

It stands alone on the standard library and imports nothing else of this project: what it does not
load it does not have to copy at every fork, and cannot break in an upgrade while jobs run.
"""
