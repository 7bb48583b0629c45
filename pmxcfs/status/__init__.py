"""What nodes tell one another beside the tree, and the dot files that show it.

Pure: times are given by the caller. Knows nothing of how messages travel.
"""
