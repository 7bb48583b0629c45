# cython: language_level=3
"""What other compiled modules call of ``_journal``."""


cpdef bytes frame(list bodies, first_sequence)
