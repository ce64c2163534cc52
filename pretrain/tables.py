"""Every objective and every probe, in the order of the documentation. A new one is its file, its test and a row here."""

from typing import NamedTuple


class Row(NamedTuple):
    """version: raised when its values change; needs_labels: whether it reads the label."""

    version: int
    needs_labels: bool


OBJECTIVES = {  # pretrain/objectives/NAME.py: function NAME, loss NAME_loss
    "look": Row(1, True),
    "cross_entropy": Row(1, True),
    "simclr": Row(1, False),
}

TASKS = {  # pretrain/transfer/NAME.py: function NAME; what a task's `probe` may say
    "knn": Row(1, True),
    "linear": Row(1, True),
}
