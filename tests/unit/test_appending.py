"""What the writers of tests/cluster/appending.py tell of their lines."""

import errno

from tests.cluster.appending import Line, longest_silence, missing


def test_the_longest_silence_is_that_between_acknowledged_lines() -> None:
    lines = [
        Line(1, 0.0, 1.0, 0),
        Line(2, 5.0, 6.0, 0),
        Line(3, 6.5, 7.0, errno.EACCES),
        Line(4, 9.0, 13.0, 0),
        Line(5, 20.0, 90.0, errno.EIO),
    ]
    assert longest_silence(lines, 0.0) == 7.0
    assert longest_silence(lines, 5.5) == 7.0
    assert longest_silence(lines, 12.0) == 1.0
    assert longest_silence(lines, 13.0) == 0.0


def test_lines_that_a_file_has_not_are_missing() -> None:
    assert missing({1, 2, 4, 12}, "1\n4\n12\n") == [2]
    assert missing({1, 3}, "1\n\0\0" + "3\n") == []
    assert missing({1, 3}, "1\n13\n") == [3]
    assert missing({1}, "") == [1]
