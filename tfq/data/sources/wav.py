# SPDX-License-Identifier: Apache-2.0
"""The source `wav:PATH`: recordings in class folders or in a manifest, resampled and cut into windows."""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import read_bytes, shown
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_per_piece, file_fingerprint, hold_out_val
from tfq.data.split import UNNAMED, MissingSplitError
from tfq.data.text_labels import Kind, LabelText, TextLabels, kind_of_label, labels_of, names_of_classes
from tfq.data.waveforms import MAX_RATE, WavFormat, read_format, read_waveform, resampled_length, resampled_part
from tfq.errors import InputError
from tfq.registry import register

_SPLITS = ("train", "val", "test")
_COLUMNS = ("path", "label", "split", "start", "end")
# The lists of the Speech Commands data set; all other files are train.
_LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
# Samples of an example: 1 GB. More is a wrong unit of data.window_secs.
_MAX_LENGTH = 1 << 28
_LAYOUT = (
    "expected PATH/{train,val,test}/CLASS/*.wav, PATH/CLASS/*.wav, or a manifest (.csv or .jsonl) with path, label, "
    "split (and start, end in seconds)"
)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording of a split.

    Attributes:
        path: The file.
        label: Its label as text; None if it has none.
        start: Where it starts in the file, in seconds.
        end: Where it ends; None for the end of the file.
        where: Where it is described, for messages.
    """

    path: Path
    label: str | None
    start: float = 0.0
    end: float | None = None
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The recordings of a source by split, with the files that describe them and notes about others."""

    root: Path
    splits: Mapping[str, Sequence[Recording]]
    described_by: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def find_recordings(address: str) -> Listing:
    """Return the recordings of a folder or a manifest.

    Raises:
        InputError: There is nothing at this path, or a manifest is damaged.
    """
    if not address:
        raise _error(f"data.source=wav has no path: {_LAYOUT}", "wav")
    path = Path(os.path.expanduser(address))
    # os.path, because pathlib raises OSError for a name that is too long.
    if os.path.isdir(path):
        if path.resolve() == Path("/"):
            raise _error(f"{shown(address)} is the root of the file system: {_LAYOUT}", address)
        return _of_folder(path)
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise _error(f"{shown(address)} is neither a folder nor a manifest: {_LAYOUT}", address)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    splits: dict[str, list[Recording]] = {}
    ignored: dict[str, None] = {}
    for number, row in rows:
        split, recording = _of_row(row, path, number)
        splits.setdefault(split, []).append(recording)
        ignored.update(dict.fromkeys(key for key in row if key not in _COLUMNS))
    if not splits:
        raise _error(f"{shown(address)} lists no recording: {_LAYOUT}", address)
    listed = ", ".join(shown(ascii(key)[1:-1]) for key in list(ignored)[:5])
    notes = (f"wav:{path}: columns other than {', '.join(_COLUMNS)} are ignored: {listed}",) if ignored else ()
    return Listing(root=path.parent, splits=splits, described_by=(path,), notes=notes)


def _error(message: str, got: object) -> InputError:
    return InputError(message, field="data.source", expected=_LAYOUT, got=got)


def _text(path: Path) -> str:
    content = read_bytes(path, "a manifest of WAV files", field="data.source")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(f"{shown(str(path))} is not UTF-8 (byte {error.start}): {_LAYOUT}", str(path)) from error


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(path)), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise _error(
                    f"{shown(str(path))}, line {reader.line_num}: the row and the header differ in length", path
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise _error(
            f"{shown(str(path))}, line {reader.line_num}: the line is not a CSV ({error})", str(path)
        ) from error


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _error(f"{shown(str(path))}, line {number}: the line is not a JSON ({error})", str(path)) from error
        if not isinstance(row, dict):
            raise _error(f"{shown(str(path))}, line {number}: expected a JSON object with path and label", str(path))
        yield number, row


def _of_row(row: Mapping[str, Any], path: Path, number: int) -> tuple[str, Recording]:
    """Return (split, recording) of a row of a manifest."""
    where = f"{shown(str(path))}, line {number}"
    name, split = str(row.get("path") or ""), str(row.get("split") or "test").strip().lower()
    if not name or "\0" in name or not _is_text(name):
        raise _error(f"{where}: there is no path. The columns are path, label, split, start, end", tuple(row))
    if split not in _SPLITS:
        raise _error(f"{where}: the split is {shown(split)[:40]!r}, expected train, val or test", split)
    times: list[float | None] = []
    for key in ("start", "end"):
        text = str(row.get(key) if row.get(key) is not None else "").strip()
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise _error(f"{where}: {key} is {shown(text)[:40]!r}, expected seconds >= 0", text)
        times.append(value)
    label = row.get("label")
    if not isinstance(label, str | int | float | None) or not _is_text(str(label)):
        raise _error(
            f"{where}: the label is {shown(ascii(label))[:40]}, expected a text or a number", type(label).__name__
        )
    recording = Recording(
        path=path.parent / name,
        label=None if label is None or str(label).strip() == "" else str(label).strip(),
        start=times[0] or 0.0,
        end=times[1],
        where=where,
    )
    return split, recording


def _is_text(text: str) -> bool:
    """Check that a text has no surrogates, which JSON can contain and no file or terminal can."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _of_folder(root: Path) -> Listing:
    folders = _subfolders(root)
    named = {name: folder for folder in folders if (name := folder.name.lower()) in _SPLITS and _subfolders(folder)}
    if named:
        found = {name: _of_classes(_subfolders(folder), root) for name, folder in named.items()}
        if not any(found.values()):
            raise _error(f"{shown(str(root))} has no WAV file in its folders: {_LAYOUT}", str(root))
        return Listing(root=root, splits={name: part for name, part in found.items() if part})
    recordings = _of_classes(folders, root)
    if not recordings:
        raise _error(f"{shown(str(root))} has no WAV file in its folders: {_LAYOUT}", str(root))
    lists = {split: root / name for split, name in _LISTS.items() if (root / name).is_file()}
    if not lists:
        note = f"wav:{root}: there is no folder train, val or test, so all recordings are the test split"
        return Listing(root=root, splits={"test": recordings}, notes=(note,))
    of_file, splits = _listed(lists), dict[str, list[Recording]]()
    for recording in recordings:
        split = of_file.pop(recording.path.relative_to(root).as_posix(), "train")
        splits.setdefault(split, []).append(recording)
    notes = [
        f"wav:{root}: {len(missing):,} files in {_LISTS[split]} do not exist, such as {shown(missing[0])}"
        for split in lists
        if (missing := [name for name, listed_in in of_file.items() if listed_in == split])
    ]
    return Listing(root=root, splits=splits, described_by=tuple(lists.values()), notes=tuple(notes))


def _listed(lists: Mapping[str, Path]) -> dict[str, str]:
    """Return {relative path: split} of the files in Speech Commands' lists."""
    of_file: dict[str, str] = {}
    for split, path in lists.items():
        for number, line in enumerate(_text(path).splitlines(), 1):
            name = line.strip()
            if name and of_file.setdefault(name, split) != split:
                raise _error(
                    f"{shown(str(path))}, line {number}: {shown(name)} is in {_LISTS[of_file[name]]} too. Expected "
                    "each file in one split",
                    name,
                )
    return of_file


def _subfolders(path: Path) -> list[Path]:
    # Speech Commands has noise in a folder _background_noise_, which is not a class.
    try:
        return sorted(item for item in path.iterdir() if item.is_dir() and item.name[0] not in "._")
    except OSError as error:
        raise _error(f"{shown(str(path))} cannot be read: {error.strerror}", str(path)) from error


def _of_classes(folders: Iterable[Path], root: Path) -> list[Recording]:
    """Return the recordings in class folders, in an order that mixes the classes and depends on the paths only."""
    found = [
        Recording(path=path, label=folder.name)
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() == ".wav" and path.is_file() and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda item: _hash_of_path(item.path, root))


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows of a recording: consecutive examples of one label.

    Attributes:
        recording: The recording.
        wav: The header of its file.
        first: Its first frame in the file.
        frames: Its number of frames in the file.
        rate: The sample rate of the examples in Hz.
        length: The number of samples of an example.
        hop: Samples between the starts of two windows.
        count: The number of windows.
    """

    recording: Recording
    wav: WavFormat
    first: int
    frames: int
    rate: int
    length: int
    hop: int
    count: int

    def samples(self, first: int, stop: int) -> NDArray[np.float32]:
        """Return the windows first..stop-1, (windows, samples); what lies after the recording is 0.

        Only these windows are read, so that a recording may be longer than memory.
        """
        if self.hop > self.length:
            return np.stack([self._part(number * self.hop, self.length) for number in range(first, stop)])
        values = self._part(first * self.hop, (stop - first - 1) * self.hop + self.length)
        return np.lib.stride_tricks.sliding_window_view(values, self.length)[:: self.hop]

    @property
    def total(self) -> int:
        """Return the number of samples of the recording at the rate of the examples."""
        return resampled_length(self.frames, self.wav.rate, self.rate)

    def _part(self, first: int, count: int) -> NDArray[np.float32]:
        def read(start: int, stop: int) -> NDArray[np.float32]:
            return read_waveform(self.wav, self.first + start, self.first + stop)

        values = np.zeros(count, np.float32)
        stop = min(first + count, self.total)
        values[: stop - first] = resampled_part(read, self.frames, self.wav.rate, self.rate, first, stop)
        return values


def windows_of(recording: Recording, config: DataConfig) -> Windows:
    """Return the windows of a recording.

    Windows start every `data.hop_secs` as long as they lie within the recording; a recording that is shorter than a
    window is one window, filled with zeros at its end.

    Raises:
        InputError: The file cannot be read, or start and end do not lie in it.
    """
    wav = _format_of(recording)
    # A time after the end of the file may be too large for an integer.
    first = round(min(recording.start * wav.rate, wav.frames))
    stop = wav.frames if recording.end is None else round(min(recording.end * wav.rate, wav.frames + 1))
    if not first < stop <= wav.frames:
        raise _error(
            f"{recording.where}: start {recording.start:g} and end {recording.end} do not lie in "
            f"{shown(str(recording.path))}, which has {wav.frames / wav.rate:.3f} seconds",
            (recording.start, recording.end),
        )
    rate = config.sample_rate or wav.rate
    if rate > MAX_RATE:
        raise InputError(
            f"data.sample_rate={rate}: expected at most {MAX_RATE}",
            field="data.sample_rate",
            expected=MAX_RATE,
            got=rate,
        )
    total = resampled_length(stop - first, wav.rate, rate)
    length = round(min(config.window_secs * rate, _MAX_LENGTH + 1)) if config.window_secs else total
    if not 0 < length <= _MAX_LENGTH:
        problem = f"more than {_MAX_LENGTH:,} samples" if length else "no sample"
        raise InputError(
            f"data.window_secs={config.window_secs:g} has {problem} at {rate} Hz in {shown(str(recording.path))}. Use "
            f"windows of {1 / rate:g} to {_MAX_LENGTH / rate:g} seconds",
            field="data.window_secs",
            expected=f"{1 / rate:g} to {_MAX_LENGTH / rate:g}",
            got=config.window_secs,
        )
    hop = max(1, round(min(config.hop_secs * rate, max(total, 1)))) if config.hop_secs else length
    count = 1 + max(0, (total - length) // hop)
    return Windows(
        recording=recording, wav=wav, first=first, frames=stop - first, rate=rate, length=length, hop=hop, count=count
    )


def _format_of(recording: Recording) -> WavFormat:
    """Return the header of a recording's file; an error also names the line of the manifest."""
    try:
        return read_format(recording.path)
    except InputError as error:
        if not recording.where:
            raise
        raise InputError(
            f"{recording.where}: {error}",
            field=error.field,
            expected=error.expected,
            got=error.got,
            limit=error.limit,
        ) from error


def read_wav(address: str, config: DataConfig, split: str) -> Examples:
    """Return the windows of recordings as {"x": float32 (n, samples)} in [-1, 1), with the labels of the recordings.

    The channels of a file are averaged. Without val, a tenth of the recordings of train is val.

    Raises:
        MissingSplitError: The split has no recordings.
        InputError: A file or the manifest is damaged, or examples have different lengths or rates.
    """
    listing = find_recordings(address)
    stored_in = "train" if split == "val" and "val" not in listing.splits else split
    recordings = listing.splits.get(stored_in)
    if not recordings:
        raise MissingSplitError(
            f"wav:{shown(address)} has no {split} split: it has {', '.join(sorted(listing.splits))}",
            field="split",
            expected=tuple(sorted(listing.splits)),
            got=split,
        )
    every = [recording for part in listing.splits.values() for recording in part]
    labels = _labels(every, recordings)
    windows = [windows_of(recording, config) for recording in recordings]
    _check_alike(windows)
    whole = dataclasses.replace(
        _examples(windows, labels),
        class_names=labels.class_names if labels else (),
        notes=(*listing.notes, *_notes(windows, stored_in)),
        information=(*(labels.information if labels else ()), *_information(windows)),
    )
    if stored_in != "train" or "val" in listing.splits:
        return whole
    return _held_out(whole, windows, labels, split, listing.root)


def _held_out(
    whole: Examples, windows: Sequence[Windows], labels: TextLabels | None, split: str, root: Path
) -> Examples:
    """Return "train" or "val" of recordings without a val split. All windows of a file are in the same one."""
    where = f"wav:{root}"
    is_regression = labels is not None and np.dtype(labels.dtype).kind == "f"
    classes: dict[str, str] = {}
    for item in windows:
        label = item.recording.label
        classes.setdefault(_file_of(item), "" if label is None or is_regression else label)
    if len(classes) < 2:
        only = dataclasses.replace(
            whole,
            information=(
                *whole.information,
                f"{where} has one training recording and no val split: train and val are windows of the same recording",
            ),
        )
        return hold_out_val(only, split, where)
    held_out = chosen_for_val(classes, root)
    chosen = [item for item in windows if (_file_of(item) in held_out) == (split == "val")]
    part = _examples(chosen, labels)
    num_val = part.num_examples if split == "val" else whole.num_examples - part.num_examples
    message = (
        f"{where} has no val split: {len(held_out):,} of {len(classes):,} training recordings ({num_val:,} of "
        f"{whole.num_examples:,} windows) are used as val, chosen from all classes by a hash of their paths"
    )
    return dataclasses.replace(
        whole,
        num_examples=part.num_examples,
        read=part.read,
        information=(*whole.information, message),
        undivided=whole,
    )


def _file_of(windows: Windows) -> str:
    return os.path.normpath(windows.recording.path)


def chosen_for_val(classes: Mapping[str, str], root: Path) -> set[str]:
    """Return the files of a validation split: a tenth of all, at least one, at equal distances in the sorted classes.

    The first file of each class is not chosen, unless every class has only one.

    Args:
        classes: File -> its class; "" for all if there are no classes.
        root: Files are ordered by a hash of their path relative to it, so that moving the folder changes nothing.
    """
    order = sorted(classes, key=lambda path: (classes[path], _hash_of_path(path, root)))
    first = {classes[path]: path for path in reversed(order)}
    candidates = [path for path in order if first[classes[path]] != path] or order
    count = min(len(candidates), max(1, len(order) // 10))
    return {candidates[(2 * number + 1) * len(candidates) // (2 * count)] for number in range(count)}


def _hash_of_path(path: str | Path, root: Path) -> bytes:
    return hashlib.sha256(os.fsencode(os.path.relpath(path, root))).digest()


def _labels(every: Sequence[Recording], recordings: Sequence[Recording]) -> TextLabels | None:
    """Return how labels are written in all splits; None if these recordings have none.

    Raises:
        InputError: Some of the recordings have a label, or their labels do not belong together.
    """
    missing = [recording for recording in recordings if recording.label is None]
    if missing and len(missing) < len(recordings):
        raise _error(f"{missing[0].where}: the recording has no label, but others have. Give all one, or none", None)
    labeled = {recording.label: recording for recording in reversed(every) if recording.label is not None}
    if missing or not labeled:
        return None
    if not recordings[0].where:  # a folder
        return names_of_classes(labeled)
    first: dict[Kind, LabelText] = {}
    for text, item in reversed(labeled.items()):
        first.setdefault(kind_of_label(text), LabelText(text=text, where=item.where, place=item.where))
    return labels_of(first, lambda: labeled)


def _check_alike(windows: Sequence[Windows]) -> None:
    """Raise InputError unless all examples have one length and one rate."""
    first = windows[0]
    for item in windows:
        paths = f"{shown(str(first.recording.path))} and {shown(str(item.recording.path))}"
        if item.rate != first.rate:
            raise InputError(
                f"{paths} have {first.rate} and {item.rate} samples per second. Set data.sample_rate to what the model "
                "was trained on",
                field="data.sample_rate",
                expected=first.rate,
                got=item.rate,
            )
        if item.length != first.length:
            raise InputError(
                f"{paths} have {first.length:,} and {item.length:,} samples. Set data.window_secs to what the model "
                "reads: shorter recordings are filled with zeros, longer ones give several examples",
                field="data.window_secs",
                expected=first.length,
                got=item.length,
            )


def _examples(windows: Sequence[Windows], labels_in: TextLabels | None) -> Examples:
    ends = np.cumsum([item.count for item in windows])
    step = examples_per_piece(4 * windows[0].length)

    def read(start: int, stop: int) -> Iterator[Piece]:
        for first in range(start, stop, step):
            last = min(first + step, stop)
            pieces, labels = [], []
            position = first
            while position < last:
                index = int(np.searchsorted(ends, position, side="right"))
                item, begin = windows[index], int(ends[index]) - windows[index].count
                end = min(last, int(ends[index]))
                pieces.append(item.samples(position - begin, end - begin))
                labels += [item.recording.label] * (end - position)
                position = end
            numbers = None
            if labels_in is not None:
                numbers = np.array([labels_in.number_of(str(label)) for label in labels], labels_in.dtype)
            yield Piece(inputs={UNNAMED: np.concatenate(pieces)}, labels=numbers)

    return Examples(num_examples=int(ends[-1]), read=read)


def _notes(windows: Sequence[Windows], split: str) -> Iterator[str]:
    short = [item for item in windows if item.total < item.length]
    if short:
        yield (
            f"{len(short):,} of {len(windows):,} recordings ({split}) are shorter than a window and end with zeros, "
            f"such as {shown(str(short[0].recording.path))}"
        )


def _information(windows: Sequence[Windows]) -> tuple[str, ...]:
    several = sum(item.count > 1 for item in windows)
    resampled = {item.wav.rate for item in windows if item.wav.rate != item.rate}
    stereo = sum(item.wav.channels > 1 for item in windows)
    total = sum(item.count for item in windows)
    unused = [left for item in windows if (left := item.total - (item.count - 1) * item.hop - item.length) > 0]
    longest = max(unused, default=0) / windows[0].rate
    return tuple(
        message
        for message, holds in (
            (f"{len(windows):,} recordings give {total:,} windows: each window is an example with its label", several),
            (
                f"recordings of {', '.join(map(str, sorted(resampled)))} Hz are resampled to {windows[0].rate} Hz",
                resampled,
            ),
            (
                f"{len(unused):,} recordings go on for up to {longest:.3g} seconds after their last whole window: this "
                "rest is not used",
                unused,
            ),
            (f"the channels of {stereo:,} recordings are averaged", stereo),
        )
        if holds
    )


def _check(address: str, split: str) -> None:
    listing = find_recordings(address)
    _format_of(next(iter(next(iter(listing.splits.values())))))


def _fingerprint(address: str, config: DataConfig) -> object:
    listing = find_recordings(address)
    recordings = {name: [_facts(item, listing.root) for item in part] for name, part in listing.splits.items()}
    paths = sorted({item.path for part in listing.splits.values() for item in part})
    hashes = [line for path in paths for line in file_fingerprint([path], path.parent)]
    return [config.sample_rate, config.window_secs, config.hop_secs, recordings, hashes]


def _facts(recording: Recording, root: Path) -> list[object]:
    return [os.path.relpath(recording.path, root), recording.label, recording.start, recording.end]


register(
    DataSource(
        name="wav",
        help="WAV files in PATH/{train,val,test}/CLASS or PATH/CLASS (also Speech Commands), or a manifest PATH (.csv, "
        ".jsonl) with path, label, split, start, end; see data.sample_rate and data.window_secs",
        address="PATH",
        read=read_wav,
        fingerprint=_fingerprint,
        check=_check,
    )
)
