# SPDX-License-Identifier: Apache-2.0
"""The section on training: curves of loss and metric by epoch, and how much longer which model was trained."""

from tfq.report.formatting import DASH, count, number_of, percent, plain, scalar
from tfq.report.record import Record, curves_of, histories_of, stages_of
from tfq.report.summary import training_notes
from tfq.report.tables import Section, Table

# Curves of Keras' history that have a column of their own in the table.
_KNOWN = ("loss", "accuracy", "val_loss", "val_accuracy")


def training_section(record: Record) -> Section | None:
    """Return the section on training: curves, and their first and last values; None if nothing was trained."""
    histories = [(step, item, curves_of(item)) for step, item in histories_of(stages_of(record))]
    histories = [(step, item, curves) for step, item, curves in histories if any(key in curves for key in _KNOWN)]
    if not histories:
        return None
    epochs = {step: max(map(len, curves.values())) for step, _, curves in histories}
    rows = tuple(
        (step, count(epochs[step]), *(_ends(key, curves.get(key)) for key in _KNOWN)) for step, _, curves in histories
    )
    losses = dict.fromkeys(plain(item["loss_function"]) for _, item, _ in histories if item.get("loss_function"))
    table = Table(
        key="training",
        columns=("step", "epochs", "loss", "accuracy", "validation loss", "validation accuracy"),
        rows=rows,
        caption="Values of the first and the last epoch",
        notes=tuple(f"loss: {loss}" for loss in losses),
    )
    steps = ", ".join(f"{step} {count(number)}" for step, number in epochs.items())
    return Section(
        key="training",
        title="Training",
        gist=f"{number_of(sum(epochs.values()), 'epoch')} ({steps})",
        paragraphs=tuple(training_notes(record)),
        tables=(table,),
    )


def _ends(curve: str, values: list[float] | None) -> str:
    if not values:
        return DASH
    ends = [values[0], values[-1]] if len(values) > 1 else values
    return " → ".join(map(percent if curve.endswith("accuracy") else scalar, ends))
