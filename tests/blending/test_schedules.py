"""Schedules: the sequence of α, against sequences written out by hand."""

import pytest

import branchprune as bp


def test_steps_are_those_of_the_paper():
    assert bp.steps(0.1) == (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


def test_steps_that_do_not_divide_one_end_at_zero():
    assert bp.steps(0.3) == (0.7, 0.4, 0.1, 0.0)


def test_linear_and_cosine():
    assert bp.linear(4) == (0.75, 0.5, 0.25, 0.0)
    assert bp.cosine(4) == (0.853553, 0.5, 0.146447, 0.0)


def test_multiplicative_stops_at_last_then_zero():
    assert bp.multiplicative(0.5, last=0.125) == (0.5, 0.25, 0.125, 0.0)


def test_rounding_adds_no_level_and_takes_none_away():
    """1 / (1 / 49) comes out a little over 49, and log 0.81 / log 0.9 a little below 2."""
    assert len(bp.steps(1 / 49)) == 49 and bp.steps(1 / 49).count(0.0) == 1
    assert bp.multiplicative(0.1, last=0.81) == (0.9, 0.81, 0.0)
    assert bp.multiplicative(0.05, last=0.857375) == (0.95, 0.9025, 0.857375, 0.0)


def test_fixed_hold_and_final_hold():
    schedule = bp.Schedule((0.5, 0.0), hold=2, final_hold=3)
    assert list(schedule) == [0.5, 0.5, 0.0, 0.0, 0.0]
    assert schedule.done
    assert schedule.max_epochs == 5


def test_order_prunes_parts_one_after_another():
    schedule = bp.Schedule((0.5, 0.0), order=["encoder", "decoder"], final_hold=2)
    assert list(schedule) == [
        {"encoder": 0.5, "decoder": 1.0},
        {"encoder": 0.0, "decoder": 1.0},
        {"encoder": 0.0, "decoder": 0.5},
        {"encoder": 0.0, "decoder": 0.0},
        {"encoder": 0.0, "decoder": 0.0},
    ]
    assert schedule.max_epochs == 5


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_plateau_holds_while_the_metric_improves(mode, sign):
    hold = bp.Plateau(max_epochs=10, patience=2, mode=mode)
    schedule = bp.Schedule((0.5, 0.0), hold=hold, final_hold=1)
    metrics = iter([1, 2, 3, 3, 2.5, 0])
    seen = []
    for alpha in schedule:
        seen.append(alpha)
        schedule.report(sign * next(metrics))
    assert seen == [0.5] * 5 + [0.0]


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_an_improvement_below_min_delta_does_not_count(mode, sign):
    hold = bp.Plateau(max_epochs=10, patience=2, min_delta=0.5, mode=mode)
    steady, slow = ([sign * step * i for i in range(10)] for step in (0.75, 0.125))
    assert [n for n in range(1, 11) if hold.over(steady[:n])] == [10]
    # From the second epoch on nothing is half better than the first, until the fifth after it is.
    assert [n for n in range(1, 7) if hold.over(slow[:n])] == [3, 4, 5]


def test_plateau_ends_at_max_epochs():
    schedule = bp.Schedule((0.0,), hold=bp.Plateau(max_epochs=4, patience=2))
    seen = []
    for alpha in schedule:
        seen.append(alpha)
        schedule.report(len(seen))
    assert seen == [0.0] * 4


def test_plateau_without_report_says_so():
    schedule = bp.Schedule((0.0,), hold=bp.Plateau())
    with pytest.raises(bp.PruneError, match="report"):
        list(schedule)


def test_a_report_that_is_left_out_is_noticed_in_the_same_epoch():
    schedule = bp.Schedule((0.5, 0.0), hold=bp.Plateau())
    schedule.report(1.0)
    schedule.advance()
    with pytest.raises(bp.PruneError, match="report"):
        schedule.advance()


def test_a_state_stays_as_it_was_while_the_schedule_goes_on():
    schedule = bp.Schedule((0.5, 0.0), hold=bp.Plateau())
    schedule.report(1.0)
    state = schedule.state_dict()
    schedule.report(2.0)
    assert state["metrics"] == [1.0]


def test_state_dict_continues_inside_a_level():
    first = bp.Schedule((0.5, 0.0), hold=bp.Plateau(patience=2), final_hold=2)
    for metric in (1.0, 0.5):
        first.report(metric)
        first.advance()
    second = bp.Schedule((0.5, 0.0), hold=bp.Plateau(patience=2), final_hold=2)
    second.load_state_dict(first.state_dict())
    second.report(0.4)
    assert second.advance()
    assert second.alpha == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.steps(0), "size"),
        (lambda: bp.steps(1.5), "1.5"),
        (lambda: bp.linear(0), "levels"),
        (lambda: bp.multiplicative(1.0), "decay"),
        (lambda: bp.Schedule((0.5, 0.7, 0.0)), "fall"),
        (lambda: bp.Schedule((0.5,)), "0.5"),
        (lambda: bp.Schedule((0.0,), hold=0), "hold"),
        (lambda: bp.Schedule((0.0,), order="encoder"), "order"),
        (lambda: bp.steps("a"), r"size \(='a'\)"),
        (lambda: bp.multiplicative("a"), r"decay \(='a'\)"),
        (lambda: bp.multiplicative(last="a"), r"last \(='a'\)"),
        (lambda: bp.linear("a"), r"levels \(='a'\)"),
        (lambda: bp.Schedule(0.5), r"levels \(=0.5\)"),
        (lambda: bp.Schedule("10"), r"levels \(='10'\)"),
        (lambda: bp.Schedule((0.5, None)), r"levels \(=\(0.5, None\)\)"),
        (lambda: bp.Schedule(()), r"levels \(=\(\)\)"),
        (lambda: bp.Schedule((0.0,), hold="2"), r"hold \(='2'\)"),
        (lambda: bp.Schedule((0.0,), order=3), r"order \(=3\)"),
        (lambda: bp.Schedule((0.0,), restarts="0.1"), r"restarts \(='0.1'\)"),
        (lambda: bp.Schedule((0.0,), restarts=["0.1"]), r"restarts \(=\['0.1'\]\)"),
        (lambda: bp.Schedule((0.0,), restarts=0.1), r"restarts \(=0.1\)"),
        (lambda: bp.Plateau(min_delta="a"), r"min_delta \(='a'\)"),
        (lambda: bp.Plateau(patience=0), "patience"),
        (lambda: bp.Plateau(mode="best"), "best"),
    ],
)
def test_bad_arguments_name_themselves(make, message):
    with pytest.raises(bp.PruneError, match=message):
        make()


def test_a_schedule_that_has_ended_starts_anew():
    schedule = bp.Schedule((0.5, 0.0), hold=2)
    assert list(schedule) == list(schedule) == [0.5, 0.5, 0.0, 0.0]


def test_holds_are_whole_numbers():
    with pytest.raises(bp.PruneError, match=r"hold \(=1.5\)"):
        bp.Schedule((0.0,), hold=1.5)


def epochs_of(schedule, metrics=None):
    """Return (α, learning rate) of every epoch, and report a metric in each if there are any."""
    seen = []
    for alpha in schedule:
        seen.append((alpha, schedule.learning_rate))
        if metrics is not None:
            schedule.report(metrics[len(seen) - 1])
    return seen


def test_restarts_hold_zero_once_more_for_each_learning_rate():
    schedule = bp.Schedule((0.5, 0.0), hold=1, final_hold=2, restarts=[0.01, 0.1])
    expected = [(0.5, None), (0.0, None), (0.0, None)]
    expected += [(0.0, 0.01), (0.0, 0.01), (0.0, 0.1), (0.0, 0.1)]
    assert epochs_of(schedule) == epochs_of(schedule) == expected
    assert schedule.max_epochs == 7
    assert schedule.done and schedule.alpha == 0 and schedule.learning_rate is None


def test_restarts_follow_the_last_part_alone():
    schedule = bp.Schedule((0.5, 0.0), hold=1, final_hold=2, order=["a", "b"], restarts=[0.3])
    assert epochs_of(schedule) == [
        ({"a": 0.5, "b": 1.0}, None),
        ({"a": 0.0, "b": 1.0}, None),
        ({"a": 0.0, "b": 0.5}, None),
        ({"a": 0.0, "b": 0.0}, None),
        ({"a": 0.0, "b": 0.0}, None),
        ({"a": 0.0, "b": 0.0}, 0.3),
        ({"a": 0.0, "b": 0.0}, 0.3),
    ]
    assert schedule.max_epochs == 7


def test_restarts_wait_for_a_plateau_each_with_metrics_of_their_own():
    hold = bp.Plateau(max_epochs=3, patience=1)
    schedule = bp.Schedule((0.5, 0.0), hold=1, final_hold=hold, restarts=[0.2, 0.4])
    assert schedule.max_epochs == 1 + 3 * 3
    # Zero ends at its third epoch, the first restart where 5 is no improvement of 6.
    metrics = [0, 7, 8, 9, 6, 5, 1, 1]
    expected = [(0.5, None), *[(0.0, None)] * 3, *[(0.0, 0.2)] * 2, *[(0.0, 0.4)] * 2]
    assert epochs_of(schedule, metrics) == expected


def test_state_dict_continues_inside_a_restart():
    def make():
        hold = bp.Plateau(max_epochs=9, patience=2)
        return bp.Schedule((0.0,), hold=hold, restarts=[0.2, 0.4])

    first, second = make(), make()
    for metric in (3, 2, 1, 5, 4):
        first.report(metric)
        first.advance()
    assert first.learning_rate == 0.2
    second.load_state_dict(first.state_dict())
    assert (second.alpha, second.learning_rate) == (0.0, 0.2)
    second.report(3)
    assert second.advance() and second.learning_rate == 0.4
    assert first.metrics == [5, 4]  # nothing is shared


@pytest.mark.parametrize("restarts", [[0.0], [0.1, -1.0], [float("nan")]])
def test_restarts_are_positive(restarts):
    with pytest.raises(bp.PruneError, match="restarts"):
        bp.Schedule((0.0,), restarts=restarts)


def test_repr_of_a_schedule_with_restarts_reads_back():
    text = repr(bp.Schedule((0.5, 0.0), hold=2, restarts=[0.1]))
    assert repr(eval(text, {"Schedule": bp.Schedule})) == text
