"""Which epoch is chosen, and the text of results.csv."""

import pytest

from train.history import Row, best_row, to_csv


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


def test_nothing_is_chosen_before_the_first_epoch():
    assert best_row([]) is None


def test_csv_has_the_documented_columns_and_empty_cells_for_what_is_not_known():
    assert to_csv([row(1), row(2, 1 / 3, 0.1, test_error=0.25)]) == (
        "epoch,train_loss,train_error,valid_loss,valid_error,test_error,"
        "learning_rate,seconds,images_per_second,peak_memory_mb\n"
        "1,2.0,0.75,1.0,0.5,,0.1,1.5,100.0,\n"
        "2,2.0,0.75,0.1,0.3333333333333333,0.25,0.1,1.5,100.0,\n"
    )
