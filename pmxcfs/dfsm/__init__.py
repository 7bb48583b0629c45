"""The replication state machine of a group.

Pure: events and clock readings go in, effects come out; ``cluster`` executes the effects.
"""
