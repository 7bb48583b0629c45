"""Metrics as round-robin databases (RRD): the edge to librrd and rrdcached."""
