"""The edge to corosync: process groups, quorum, configuration, and the host's corosync.conf.

``dfsm`` decides about replication, ``replica`` about content.
"""
