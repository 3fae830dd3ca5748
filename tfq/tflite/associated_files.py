# SPDX-License-Identifier: Apache-2.0
"""Files that a published `.tflite` carries after the flatbuffer, as a ZIP archive: labels, vocabularies.

The metadata entry TFLITE_METADATA names them. Editing a flatbuffer loses them, because it writes only the flatbuffer.
"""

import io
import zipfile

from tfq.errors import warn

_MOST_FILES, _MOST_BYTES = 100, 1 << 26


def with_associated_files(data: bytes, source: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return `data` with the associated files of `source` after it, and their names; `source` may be untrusted.

    Files that cannot be read, or that are unreasonably many or large, are left out with a TfqWarning.
    """
    if not zipfile.is_zipfile(io.BytesIO(source)):
        return data, ()
    try:
        with zipfile.ZipFile(io.BytesIO(source)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > _MOST_FILES or size > _MOST_BYTES:
                raise zipfile.BadZipFile(f"{len(entries)} files of {size:,} bytes")
            files = [(entry, archive.read(entry)) for entry in entries]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError) as error:
        warn(f"model: the files after the flatbuffer (labels) are left out, because they cannot be read: {error}")
        return data, ()
    if not files:
        return data, ()
    result = io.BytesIO(data)
    with zipfile.ZipFile(result, "a", zipfile.ZIP_STORED) as archive:
        for entry, content in files:
            copied = zipfile.ZipInfo(entry.filename, entry.date_time)
            archive.writestr(copied, content)
    return result.getvalue(), tuple(entry.filename for entry, _ in files)
