"""The file system behind the mount: its rules, and the time at which written data is published.

Imports nothing of FUSE: entries and handles go in and out, errors are ``PmxcfsError``.
"""
