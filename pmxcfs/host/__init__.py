"""This machine: the process, its files, threads and log, the watchdog, the node's address.

Imports nothing of trees, messages or requests.
"""
