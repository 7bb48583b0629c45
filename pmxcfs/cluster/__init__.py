"""The edge to corosync: process groups, quorum, configuration, the host's corosync.conf.

Decides nothing about replication (``dfsm`` does) and nothing about content (``replica`` does).
"""
