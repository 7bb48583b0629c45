"""The check of what the nodes of a divided cluster were promised."""

from pathlib import Path

from tests.cluster.agent import Outcome
from tests.cluster.promises import Copy, Promises, Step, Value, Verdict

OK, FAILED = 0, 5
LOSER, WINNER = 1, 3


class Cut:
    """A cut of nodes 1 and 2 from node 3."""

    def __init__(self) -> None:
        self.promises = Promises([(1, 2), (3,)])
        self.copies: list[Copy] = []

    def write(
        self, path: str, value: Value, *, way: str = "put", node: int = LOSER, error: int = OK
    ) -> None:
        outcome = Outcome(None, error, 0.0, 0.0)
        self.promises.add(node, Step((way, path, value), {path: value}), outcome)

    def keep(self, content: dict[str, Value], *, node: int = LOSER) -> None:
        self.copies.append(Copy(node, Path(f"{len(self.copies)}.db"), content))

    def judge(self, **tree: Value) -> Verdict:
        return self.promises.judge(tree, self.copies)


def test_a_promise_is_kept_by_the_tree_or_by_a_copy() -> None:
    cut = Cut()
    cut.write("a", b"1")
    cut.write("b", b"2")
    cut.keep({"b": b"2"})
    verdict = cut.judge(a=b"1")
    assert (verdict.in_tree, verdict.in_copies, verdict.lost) == (1, 1, [])
    assert verdict.names == {Path("0.db"): [{"b"}]}
    assert not verdict.needless


def test_a_value_that_is_nowhere_is_lost() -> None:
    cut = Cut()
    cut.write("a", b"1")
    assert cut.judge().lost == ["lost: a of node 1 is None, not b'1'"]


def test_a_copy_of_the_other_side_keeps_no_promise() -> None:
    cut = Cut()
    cut.write("a", None)
    cut.keep({}, node=WINNER)
    assert len(cut.judge(a=b"common").lost) == 1


def test_what_was_replaced_on_the_same_side_does_not_count() -> None:
    cut = Cut()
    cut.write("a", b"1")
    cut.write("a", b"2")
    assert not cut.judge(a=b"2").lost
    assert len(cut.judge(a=b"1").lost) == 1


def test_after_a_failure_the_path_has_the_old_or_the_new_value_or_is_empty() -> None:
    cut = Cut()
    cut.write("a", b"1")
    cut.write("a", b"2", error=FAILED)
    assert [len(cut.judge(a=value).lost) for value in (b"1", b"2", b"", b"3")] == [0, 0, 0, 1]


def test_a_failure_promises_nothing() -> None:
    cut = Cut()
    cut.write("a", b"1", error=FAILED)
    assert not cut.judge().lost
    assert cut.promises.acknowledged == 0


def test_a_removal_is_a_promise() -> None:
    cut = Cut()
    cut.write("a", None)
    assert len(cut.judge(a=b"common").lost) == 1
    cut.keep({"b": b"common"})
    assert not cut.judge(a=b"common").lost


def test_a_removal_is_kept_if_the_other_side_has_made_a_new_file() -> None:
    cut = Cut()
    cut.write("a", None)
    cut.write("a", b"theirs", node=WINNER)
    assert len(cut.judge(a=b"theirs").lost) == 1
    cut.write("a", b"new", node=WINNER, way="rename")
    assert not cut.judge(a=b"new").lost
    assert len(cut.judge(a=b"common").lost) == 2


def test_a_copy_without_anything_of_its_side_that_the_tree_lacks_is_needless() -> None:
    cut = Cut()
    cut.write("a", b"1")
    cut.write("status", b"2", node=WINNER)
    cut.keep({"a": b"1", "status": b"1"})
    assert cut.judge(a=b"1", status=b"2").needless == cut.copies


def test_a_copy_made_before_a_file_was_made_again_does_not_hold_its_removal() -> None:
    cut = Cut()
    cut.write("a", None)
    cut.write("a", b"1")
    cut.keep({})
    assert cut.judge(a=b"1").needless == cut.copies
