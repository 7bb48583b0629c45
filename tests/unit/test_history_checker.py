"""``tests.cluster.history``, which checks runs on clusters: it finds each kind of violation."""

import itertools
import math
import random

from tests.cluster.history import (
    DIRECTORY,
    EMPTY,
    LOST,
    UNKNOWN,
    WON,
    Contest,
    Effect,
    Event,
    History,
    Line,
    Refusal,
    Value,
)


def history_of(*events: Event) -> History:
    history = History()
    for event in events:
        history.add(event)
    return history


def wrote(value: Value, start: float, end: float, *, node: int = 1, known: bool = True) -> Effect:
    return Effect("file", value, node, start, end if known else math.inf, known)


def tried(outcome: str, *, node: int, start: float = 1, end: float = 2) -> Contest:
    return Contest("lock", node, start, end, outcome)


def lines(*texts: str, end: float = 1) -> list[Line]:
    return [Line("log", text, 1, end) for text in texts]


def test_the_last_promised_value_must_be_left() -> None:
    history = history_of(wrote("a", 1, 2), wrote("b", 3, 4, node=2))
    assert history.allowed("file") == {"b"}
    assert history.violations({"file": "b"}) == []


def test_a_lost_write_is_reported() -> None:
    history = history_of(wrote("a", 1, 2), wrote("b", 3, 4, node=2))
    (violation,) = history.violations({"file": "a"})
    assert violation.startswith("file is a, not b; last promise: ")
    (violation,) = history.violations({})
    assert violation.startswith("file is not there, not b; ")


def test_a_lost_delete_is_reported() -> None:
    history = history_of(wrote("a", 1, 2), wrote(None, 3, 4))
    assert history.violations({}) == []
    assert "made by: [Effect(path='file', value='a'" in history.violations({"file": "a"})[0]


def test_each_of_two_concurrent_writes_may_be_the_last() -> None:
    history = history_of(wrote("a", 1, 4), wrote("b", 2, 3, node=2))
    assert history.allowed("file") == {"a", "b"}


def test_a_value_is_gone_if_its_operation_ended_before_a_promised_one_began() -> None:
    """Even if it was concurrent with an operation whose value is allowed."""
    history = history_of(wrote("a", 1, 3), wrote("b", 2, 6, node=2), wrote("c", 4, 5, node=3))
    assert history.allowed("file") == {"b", "c"}


def test_an_operation_of_unknown_outcome_may_take_effect_at_any_time() -> None:
    history = history_of(wrote("a", 1, 2, known=False), wrote("b", 3, 4))
    assert history.allowed("file") == {"a", "b"}


def test_without_a_promise_a_file_may_be_missing() -> None:
    assert history_of(wrote("a", 1, 2, known=False)).allowed("file") == {None, "a"}
    assert history_of(wrote("a", 1, 2)).allowed("file") == {"a"}


def test_a_value_in_doubt_may_be_lost_or_kept_but_may_not_return() -> None:
    history = history_of(wrote("a", 1, 2), wrote("b", 3, 4, node=2))
    history.doubts.add(2, 3.5, 5)
    assert history.allowed("file") == {"b"} | {"a"}
    history.add(wrote("c", 6, 7))
    assert history.allowed("file") == {"c"}


def test_a_doubt_covers_one_node_and_one_span_of_time() -> None:
    history = history_of(wrote("a", 1, 2), wrote("b", 3, 4, node=2))
    history.doubts.add(1, 0)
    history.doubts.add(2, 0, 3.9)
    history.doubts.add(2, 4.1)
    assert history.allowed("file") == {"b"}


def test_a_path_that_no_operation_made_is_reported() -> None:
    history = history_of(wrote("a", 1, 2))
    violations = history.violations({"file": "a", "other": "x"})
    assert violations == ["other is x, which nobody has made; refused: []"]
    history.add(Refusal("other", "EACCES", 1, 3, 4))
    assert "refused: [Refusal(path='other'" in history.violations({"file": "a", "other": "x"})[0]
    assert history.violations({"file": "torn: 3 bytes"})[0].startswith("file is torn: 3 bytes, not")


def test_an_empty_file_is_allowed_only_where_it_was_left() -> None:
    assert history_of(wrote("a", 1, 2)).violations({"file": EMPTY})
    left = history_of(wrote("a", 1, 2, known=False), wrote(EMPTY, 1, 2, known=False))
    assert left.violations({"file": EMPTY}) == []
    between = history_of(Effect("file", EMPTY, 1, 1, 2, is_known=False), wrote("a", 3, 4))
    assert between.violations({"file": EMPTY})
    between.doubts.add(1, 4)
    assert between.violations({"file": EMPTY}) == []


def test_two_winners_of_a_contest_are_reported() -> None:
    history = history_of(tried(WON, node=1), tried(WON, node=2), tried(LOST, node=3))
    history.add(Effect("lock", DIRECTORY, 1, 1, 2))
    (violation,) = history.violations({"lock": DIRECTORY})
    assert violation.startswith("lock was won more than once: ")


def test_a_second_winner_in_doubt_is_only_counted() -> None:
    history = history_of(tried(WON, node=1), tried(WON, node=2), tried(LOST, node=3))
    history.doubts.add(2, 0)
    assert history.violations({}) == []
    assert history.doubtful_victories() == ["lock"]


def test_a_contest_without_a_winner_is_reported() -> None:
    (violation,) = history_of(tried(LOST, node=1)).violations({})
    assert violation.startswith("lock was won by nobody, but lost")
    assert history_of(tried(LOST, node=1), tried(UNKNOWN, node=2)).violations({}) == []


def test_a_won_contest_must_leave_its_path() -> None:
    history = history_of(tried(WON, node=1), Effect("lock", DIRECTORY, 1, 1, 2))
    assert history.violations({"lock": DIRECTORY}) == []
    assert history.violations({})[0].startswith("lock is not there, not directory")


def test_lost_reordered_and_repeated_lines_are_reported() -> None:
    history = history_of(
        *lines("a", "b"), Line("log", "c", 1, math.inf, is_known=False), *lines("d")
    )
    assert history.violations({"log": "a\nb\nc\nd\n"}) == []
    assert history.violations({"log": "a\nb\nd\n"}) == []
    assert history.violations({"log": "a\nd\n"}) == ["log has lost 1 lines, the first of them 'b'"]
    assert history.violations({"log": "b\na\nd\n"}) == [
        "log has its lines in another order, or twice"
    ]
    assert history.violations({"log": "a\na\nb\nd\n"}) == [
        "log has its lines in another order, or twice"
    ]
    assert history.violations({"log": "a\nxb\nb\nd\n"}) == [
        "log has 1 strange lines, the first of them 'xb'"
    ]
    assert history.violations({"log": "a\nb\n\0\0d\n"}) == []


def test_a_line_in_doubt_may_be_missing() -> None:
    history = history_of(*lines("a"), *lines("b", end=5))
    history.doubts.add(1, 4, 6)
    assert history.violations({"log": "a\n"}) == []


def test_promised_doubtful_and_unknown_outcomes_are_counted() -> None:
    history = history_of(wrote("a", 1, 2), wrote("b", 3, 4, known=False), *lines("a"), *lines("b"))
    history.add(tried(WON, node=1))
    history.doubts.add(1, 0.5, 1.5)
    assert history.counts() == {"promised": 1, "doubtful": 2, "unknown": 1, "contests": 1}


def test_the_allowed_values_are_those_of_all_possible_orders() -> None:
    """A value is allowed if and only if some total order of the operations ends with it."""
    source = random.Random(1)
    for _ in range(300):
        effects = []
        for number in range(source.randint(1, 5)):
            start = source.uniform(0, 10)
            known = source.random() < 0.8
            effects.append(wrote(str(number), start, start + source.uniform(0, 5), known=known))
        assert history_of(*effects).allowed("file") == set(last_of_every_order(effects))


def last_of_every_order(effects: list[Effect]) -> list[Value]:
    """Return the last value of each total order that respects the times of the operations.

    An operation of unknown outcome may be missing from an order, or come late.
    """
    found: list[Value] = []
    unknown = [effect for effect in effects if not effect.is_known]
    if len(unknown) == len(effects):
        found.append(None)
    for count in range(len(unknown) + 1):
        for absent in itertools.combinations(unknown, count):
            present = [effect for effect in effects if effect not in absent]
            orders = itertools.permutations(present)
            found += [order[-1].value for order in orders if order and is_possible(order)]
    return found


def is_possible(order: tuple[Effect, ...]) -> bool:
    return not any(
        later.is_known and later.end < earlier.start
        for earlier, later in itertools.combinations(order, 2)
    )
