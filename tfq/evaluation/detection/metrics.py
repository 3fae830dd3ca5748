# SPDX-License-Identifier: Apache-2.0
"""The metrics of object detection: COCO's mean average precision, and metrics for outputs that a user decodes."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tfq.data.box_labels import are_box_labels, check_box_labels
from tfq.errors import InputError
from tfq.evaluation.detection.coco import FIGURES, IOU_THRESHOLDS, figures, match, mean_figures, weighted_map
from tfq.evaluation.detection.decoding import EXPECTED, Decoder, Detections, convention_of, decode_outputs_by_shape
from tfq.evaluation.metric import Contract, Metric, MetricTable, Outputs, State, Weights, concatenate_states
from tfq.registry import register

Threshold = Literal["mean", "0.5", "0.75"]
Result = TypeVar("Result")
_COLUMN: dict[Threshold, str] = {"mean": "AP", "0.5": "AP50", "0.75": "AP75"}
_THRESHOLDS: dict[Threshold, slice] = {"mean": slice(None), "0.5": slice(0, 1), "0.75": slice(5, 6)}
_TITLES: dict[Threshold, str] = {"mean": "COCO mAP", "0.5": "COCO AP50", "0.75": "COCO AP75"}
LABELS = "(n, max_boxes, 6 or 9): class, ymin, xmin, ymax, xmax, is_crowd, and optionally area and image size"
# The matches of the outputs that were scored last: several metrics, their intervals and tables need the same ones.
_matches: OrderedDict[tuple[Decoder, bytes], State] = OrderedDict()
# Their boxes: the matches and a report's images of differing boxes need them.
_detections: OrderedDict[tuple[Decoder, bytes], Detections] = OrderedDict()
_KEPT = 4


def detection_metric(
    decode: Decoder, *, name: str, iou_threshold: Threshold = "mean", help: str = "", title: str = ""
) -> Metric:
    """Return a metric that computes COCO's average precision of a detector whose outputs `decode` turns into boxes.

    Examples:
        >>> def decode(outputs):
        ...     corners, logits = outputs
        ...     return tfq.decode_raw(corners / 320, 1 / (1 + np.exp(-logits)), iou_threshold=0.6)

        >>> tfq.register(tfq.detection_metric(decode, name="my_map"))

    Args:
        decode: (all outputs of the model, real values, (n, ...) each) -> `Detections`. It gets some of the examples at
            a time, and must treat each on its own.
        name: The name that users write.
        iou_threshold: "mean": the mean over the IoU thresholds 0.5, 0.55 ... 0.95; "0.5" or "0.75": only this one.
        help: What it computes, for `--help`; "" for a text that names the function.
        title: The name in reports; "" for COCO's.

    Returns:
        The metric, not registered.

    Raises:
        InputError: `iou_threshold` has another value.
    """
    if iou_threshold not in _COLUMN:
        raise InputError(
            f"iou_threshold={iou_threshold!r}: expected one of {', '.join(_COLUMN)}",
            field="iou_threshold",
            expected=tuple(_COLUMN),
            got=iou_threshold,
        )
    column = FIGURES.index(_COLUMN[iou_threshold])

    def check(outputs: Outputs, labels: NDArray[Any]) -> None:
        _check_lengths(outputs, labels)
        check_box_labels(labels)
        if decode is decode_outputs_by_shape:
            convention_of(outputs)

    def update(state: State, outputs: Outputs, labels: NDArray[Any]) -> State:
        return concatenate_states(state, _matched(decode, outputs, labels))

    def finish(state: State) -> float:
        _, values = figures(state)
        if not len(values):
            raise InputError(
                f"{name}: the labels contain no box that is not a crowd, so there is no average precision. Use "
                "examples with labeled boxes",
                field="labels",
                expected="at least one box",
                got=0,
            )
        return float(values[:, column].mean())

    def resampled(outputs: Outputs, labels: NDArray[Any]) -> Callable[[Weights], float]:
        return weighted_map(_matched(decode, outputs, labels), _THRESHOLDS[iou_threshold])

    return Metric(
        name=name,
        help=help
        or f"COCO's {_COLUMN[iou_threshold]} of the boxes that {getattr(decode, '__name__', 'decode')} returns",
        title=title or _TITLES[iou_threshold],
        direction="higher",
        unit="score",
        contract=Contract(
            outputs=EXPECTED if decode is decode_outputs_by_shape else "any that its function decodes",
            labels=LABELS,
            predicts="values",
            check=check,
        ),
        outputs=None,
        update=update,
        finish=finish,
        merge=concatenate_states,
        resampled=resampled,
        table=_table,
        suits=are_box_labels if name == "coco_map" else _never,
        detections=lambda outputs: _decoded(decode, outputs),
    )


def _never(labels: NDArray[Any]) -> bool:
    return False


def _table(state: State) -> MetricTable:
    """Return COCO's figures of all classes together, and of each class."""
    classes, values = figures(state)
    return MetricTable(
        rows=("all", *map(str, classes)),
        columns=FIGURES,
        values=np.concatenate([mean_figures(values)[None], values]),
        unit="score",
        counts=("boxes",),
        classes=(None, *map(int, classes)),
    )


def _check_lengths(outputs: Outputs, labels: NDArray[Any]) -> None:
    for output in outputs:
        if len(output) != len(labels):
            raise InputError(
                f"an output has {len(output):,} examples, and there are {len(labels):,} labels",
                field="labels",
                expected=len(output),
                got=len(labels),
            )


def _matched(decode: Decoder, outputs: Outputs, labels: NDArray[Any]) -> State:
    """Return the matches of these outputs, which may have been computed before."""
    return _kept(_matches, decode, (*outputs, labels), lambda: match(_decoded(decode, outputs), labels))


def _decoded(decode: Decoder, outputs: Outputs) -> Detections:
    """Return the boxes of these outputs, which may have been decoded before."""

    def compute() -> Detections:
        detections, count = decode(outputs), len(outputs[0])
        if not isinstance(detections, Detections) or len(detections.boxes) != count:
            raise InputError(
                f"the decode function returned {_shown(detections)}, expected tfq.Detections of {count:,} images",
                field="metric",
                expected=f"Detections of {count} images",
                got=type(detections).__name__,
            )
        return detections

    return _kept(_detections, decode, outputs, compute)


def _kept(
    results: OrderedDict[tuple[Decoder, bytes], Result],
    decode: Decoder,
    arrays: Sequence[NDArray[Any]],
    compute: Callable[[], Result],
) -> Result:
    """Return the result for these arrays, which is computed if it is not one of the last ones."""
    digest = hashlib.blake2b()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    key = decode, digest.digest()
    if key not in results:
        results[key] = compute()
    results.move_to_end(key)
    while len(results) > _KEPT:
        results.popitem(last=False)
    return results[key]


def _shown(result: object) -> str:
    return f"those of {len(result.boxes):,}" if isinstance(result, Detections) else f"a {type(result).__name__}"


_FAMILY: tuple[tuple[str, Threshold, str], ...] = (
    ("coco_map", "mean", f"the mean over {len(IOU_THRESHOLDS)} IoU thresholds from 0.5 to 0.95, and over the classes"),
    ("coco_ap50", "0.5", "at an IoU of 0.5, the mean over the classes"),
    ("coco_ap75", "0.75", "at an IoU of 0.75, the mean over the classes"),
)
for _name, _threshold, _what in _FAMILY:
    register(
        detection_metric(
            decode_outputs_by_shape,
            name=_name,
            iou_threshold=_threshold,
            help=f"average precision of detected boxes by COCO's rules: {_what}",
        )
    )
