"""This machine: the process, its files, threads and log, the watchdog, the node's address.

Knows nothing of trees, mutations or requests.
"""
