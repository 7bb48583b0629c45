"""Metrics as round-robin databases (RRD): the edge to rrdtool and rrdcached."""
