"""The replication state machine: what a node owes its group, decided without doing any of it.

Pure: events and times go in, effects come out; ``cluster`` carries them out.
"""
