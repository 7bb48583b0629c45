"""What users of the mount may do, and when what they write is published.

Knows no FUSE: entries and handles go in and out, errors are ``PmxcfsError``.
"""
