# SPDX-License-Identifier: Apache-2.0
"""The result of a comparison of two flatbuffers, and checks of it against requirements."""

from dataclasses import asdict, dataclass
from typing import Any

from tfq.config import ComparisonRequireConfig
from tfq.errors import RequirementError
from tfq.requirement import Requirement


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord:
    """The differences between two flatbuffers.

    Attributes:
        byte_identical: Whether the files have the same bytes.
        files: "reference" and "model" -> `bytes`, `gzip_bytes` and `sha256` of the file.
    """

    byte_identical: bool
    files: dict[str, dict[str, Any]]

    @property
    def num_differences(self) -> int:
        """The number of differences, other than in the size and the bytes of the files."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the comparison as text for the terminal."""
        return "identical" if self.byte_identical else "the files differ"


def requirements_of(record: ComparisonRecord, require: ComparisonRequireConfig) -> tuple[Requirement, ...]:
    """Return every requirement that `require` sets, with its verdict."""
    if not require.no_differences:
        return ()
    count = record.num_differences
    return (Requirement(name="no_differences", bound=0, value=count, holds=count == 0),)


def check_requirements(record: ComparisonRecord, require: ComparisonRequireConfig) -> None:
    """Raise RequirementError if a requirement is not met."""
    for item in requirements_of(record, require):
        if not item.holds:
            raise RequirementError(
                f"the files differ in {item.value} places, but comparison.require.no_differences is set",
                field="comparison.require.no_differences",
                expected=0,
                got=item.value,
            )
