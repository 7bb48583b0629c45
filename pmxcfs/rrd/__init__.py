"""The edge to rrdtool and rrdcached: metrics that clients set become round-robin databases."""
