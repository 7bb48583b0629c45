"""The edge to corosync: process groups, quorum, configuration, and the host's corosync.conf.

It decides nothing about replication, which ``dfsm`` does, or about content, which ``replica`` does.
"""
