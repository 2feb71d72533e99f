"""Which epoch is chosen, and the text of results.csv."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.synthetic_runs import any_rows
from train.run.history import Row, best_row, chooses_average, from_csv, to_csv, why_no_run


def row(epoch, valid_error=0.5, valid_loss=1.0, test_error=None):
    return Row(epoch, 2.0, 0.75, valid_loss, valid_error, test_error, 0.1, 1.5, 100.0, None)


@pytest.mark.parametrize(
    ("errors_and_losses", "chosen"),
    [
        ([(0.5, 1.0), (0.3, 2.0), (0.4, 0.1)], 2),
        ([(0.3, 1.0), (0.3, 0.9), (0.3, 0.95)], 2),
        ([(0.3, 1.0), (0.3, 1.0)], 1),
        ([(None, None), (None, None)], 2),
    ],
)
def test_lowest_error_is_chosen_then_lowest_loss_then_the_first_and_the_last_without_validation(
    errors_and_losses, chosen
):
    rows = [row(i, error, loss) for i, (error, loss) in enumerate(errors_and_losses, start=1)]
    assert best_row(rows).epoch == chosen


def averaged(epoch, error, loss, ema_error, ema_loss):
    made = row(epoch, error, loss)
    made.ema_valid_error, made.ema_valid_loss = ema_error, ema_loss
    return made


@pytest.mark.parametrize(
    ("scores", "chosen", "is_average"),
    [
        ([(0.5, 1.0, 0.4, 1.0), (0.3, 1.0, 0.6, 1.0)], 2, False),
        ([(0.5, 1.0, 0.2, 1.0), (0.3, 1.0, 0.6, 1.0)], 1, True),
        ([(0.3, 1.0, 0.3, 1.0), (0.3, 1.0, 0.3, 0.9)], 2, True),
        ([(0.3, 1.0, 0.3, 1.0), (0.3, 1.0, 0.3, 1.0)], 1, False),
        ([(0.4, 0.1, 0.3, 1.0), (0.4, 0.1, 0.3, 1.0)], 1, True),
    ],
)
def test_the_best_of_both_weights_of_all_epochs_is_chosen_and_of_equal_ones_those_without_average(
    scores, chosen, is_average
):
    rows = [averaged(epoch, *values) for epoch, values in enumerate(scores, start=1)]
    best = best_row(rows)
    assert (best.epoch, chooses_average(best, has_average=True)) == (chosen, is_average)
    assert (best.kept_error, best.kept_loss) == min(
        pair for error, loss, *of_average in scores for pair in [(error, loss), tuple(of_average)]
    )


@pytest.mark.parametrize("has_average", [True, False])
def test_without_validation_images_the_average_has_average_where_there_is_one(has_average):
    assert chooses_average(row(1, None, None), has_average=has_average) == has_average


def test_nothing_is_chosen_before_the_first_epoch():
    assert best_row([]) is None


def test_csv_has_the_documented_columns_and_empty_cells_for_what_is_not_known():
    assert to_csv([row(1), row(2, 1 / 3, 0.1, test_error=0.25)]) == (
        "epoch,train_loss,train_error,valid_loss,valid_error,test_error,"
        "learning_rate,seconds,images_per_second,peak_memory_mb,skipped_steps\n"
        "1,2.0,0.75,1.0,0.5,,0.1,1.5,100.0,,\n"
        "2,2.0,0.75,0.1,0.3333333333333333,0.25,0.1,1.5,100.0,,\n"
    )


def test_csv_has_columns_of_averaged_weights_where_there_are_some():
    header, line = to_csv([averaged(1, 0.5, 1.0, 0.25, 0.75)]).splitlines()
    assert header.endswith(",peak_memory_mb,skipped_steps,ema_valid_loss,ema_valid_error")
    assert line == "1,2.0,0.75,1.0,0.5,,0.1,1.5,100.0,,,0.75,0.25"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([averaged(1, 0.5, 1.0, 0.5, 1.0), row(2)], "ema_valid_loss and ema_valid_error are empty in some places only"),
        ([averaged(1, 0.5, 1.0, 0.5, None)], "ema_valid_loss and ema_valid_error are empty in some places only"),
        ([averaged(1, None, None, 0.5, 1.0)], "it has an ema_valid_error without a valid_error"),
    ],
)
def test_averaged_weights_are_validated_in_all_epochs_as_the_others_are_or_in_none(rows, message):
    assert why_no_run(rows) == message
    with pytest.raises(ValueError, match=message):
        from_csv(to_csv(rows))


@given(any_rows())
def test_a_table_that_was_written_is_read_back_to_the_last_bit(rows):
    assert from_csv(to_csv(rows)) == rows
    assert all(type(row.epoch) is int for row in from_csv(to_csv(rows)))


def test_columns_may_stand_elsewhere_and_others_are_left_out():
    table = list(csv.DictReader(io.StringIO(to_csv([row(1), row(2, test_error=0.25)]))))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*reversed(table[0]), "notes"])
    writer.writeheader()
    writer.writerows({**line, "notes": "a,\nb"} for line in table)
    assert from_csv(text.getvalue()) == [row(1), row(2, test_error=0.25)]


GOOD = to_csv([row(1), row(2)])
HEADER, FIRST, SECOND = GOOD.splitlines()
BAD_TABLES = [
    ("", "line 1 names the column epoch nowhere"),
    ("no table", "line 1 names the column epoch nowhere"),
    (GOOD.replace("seconds", "time"), "line 1 names the column seconds nowhere"),
    (GOOD.replace("seconds", "epoch"), "line 1 names the column epoch twice"),
    (f"{HEADER}\n{FIRST},5", "line 2 has 12 cells, the header 11"),
    (f"{HEADER}\n{FIRST}\n\n", "line 3 has 0 cells, the header 11"),
    (GOOD[:-20], "line 3 has 5 cells, the header 11"),
    (f"{HEADER}\n{SECOND}", "line 2 has epoch 2, but must have 1"),
    (f"{HEADER}\n{FIRST}\n{FIRST}", "line 3 has epoch 1, but must have 2"),
    (GOOD.replace("1,2.0", "1,nan", 1), "line 2: train_loss is 'nan', but must be a number from 0 to 3.5e+38"),
    (GOOD.replace("1,2.0", "1,inf", 1), "line 2: train_loss is 'inf'"),
    (GOOD.replace("1,2.0", "1,-2.0", 1), "line 2: train_loss is '-2.0'"),
    (GOOD.replace("1,2.0", "1,1e39", 1), "line 2: train_loss is '1e39'"),
    (GOOD.replace("1,2.0", "1,1e999", 1), "line 2: train_loss is '1e999'"),
    (GOOD.replace("1,2.0", "1,1_0", 1), "line 2: train_loss is '1_0'"),
    (GOOD.replace("1,2.0", "1,\u0662", 1), "line 2: train_loss is '\u0662'"),
    (GOOD.replace("1,2.0", "1,", 1), "line 2: train_loss is ''"),
    (GOOD.replace("1,2.0", "1," + "9" * 5000, 1), "line 2: train_loss is '99999999999999999999...'"),
    (GOOD.replace("1,2.0", "1," + "9" * 200_000, 1), "line 2: field larger than field limit"),
    (GOOD.replace("0.75", "75%", 1), "line 2: train_error is '75%', but must be a number from 0 to 1"),
    (GOOD.replace("0.75", "1.01", 1), "line 2: train_error is '1.01'"),
    (GOOD.replace("1,2.0", '1,"2.0', 1), "line 3: unexpected end of data"),
    (GOOD.replace("1,2.0", "=1+1,2.0", 1), "line 2: epoch is '=1+1'"),
    (GOOD.replace("0.75,1.0,0.5", "0.75,,", 1), "valid_loss and valid_error are empty in some places only"),
    (GOOD.replace("0.75,1.0,0.5", "0.75,1.0,"), "valid_loss and valid_error are empty in some places only"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TABLES, ids=range(len(BAD_TABLES)))
def test_what_is_no_table_of_epochs_is_said_in_one_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        from_csv(text)
    assert "\n" not in str(error.value)


@given(st.data())
def test_a_damaged_table_is_read_or_refused_and_nothing_else(data):
    place = data.draw(st.integers(0, len(GOOD) - 1))
    damaged = GOOD[:place] + data.draw(st.text(max_size=3)) + GOOD[place + 1 :]
    try:
        rows = from_csv(damaged)
    except ValueError:
        return
    assert [row.epoch for row in rows] == [*range(1, len(rows) + 1)]
    assert all(row.is_valid() and 0 <= row.train_error <= 1 for row in rows)
    best_row(rows)
