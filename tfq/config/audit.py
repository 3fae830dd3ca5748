# SPDX-License-Identifier: Apache-2.0
"""What a flatbuffer must be."""

import dataclasses
from dataclasses import dataclass

from tfq.config.base import Config, setting
from tfq.config.conversion import IO_TYPES, SCHEMES, ConversionConfig, check_io_types
from tfq.patterns import in_source

# What the audit can require -> the scheme that it is; an int8 model is full_int8 when all of it is.
AUDIT_SCHEMES = {"full_int8" if scheme == "int8" else scheme: scheme for scheme in SCHEMES}


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Config):
    """What a flatbuffer must be."""

    require: str = setting(
        "",
        "scheme that the flatbuffer must have, or target that must be able to run it; empty reports only",
        choices=("", *AUDIT_SCHEMES),
        choices_of="target",
    )
    inference_input_type: str = setting(
        "", "type that the inputs must have; empty is the scheme's own", choices=IO_TYPES
    )
    inference_output_type: str = setting(
        "", "type that the outputs must have; empty is the scheme's own", choices=IO_TYPES
    )
    allow_float: tuple[str, ...] = setting(
        (),
        "name patterns of layers (or of output tensors) that may stay float, or be of any other type; also op:12 for "
        "op number 12 of this file, and float:op:12 for the op that its conversion addressed as op:12",
    )
    allow_int16: tuple[str, ...] = setting(
        (), "patterns, as of allow_float, of layers whose activations may have 16 bits"
    )
    allow_int4: tuple[str, ...] = setting((), "patterns, as of allow_float, of layers whose weights may have 4 bits")
    execute: bool = setting(
        True, "run the file once on neutral inputs, in a child process; a file that fails does not pass"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.require in AUDIT_SCHEMES:
            check_io_types(self, AUDIT_SCHEMES[self.require], f"require={self.require}")

    def for_conversion(self, conversion: ConversionConfig) -> "AuditConfig":
        """Return what a converted flatbuffer must be: its target or scheme, unless this requires another."""
        scheme = next(name for name, scheme in AUDIT_SCHEMES.items() if scheme == conversion.scheme)
        return dataclasses.replace(
            self,
            require=self.require or conversion.target or scheme,
            allow_float=(*self.allow_float, *map(in_source, conversion.float_layers)),
            allow_int16=(*self.allow_int16, *map(in_source, conversion.int16_layers)),
            allow_int4=(*self.allow_int4, *map(in_source, conversion.int4_layers)),
            inference_input_type=conversion.inference_input_type or self.inference_input_type,
            inference_output_type=conversion.inference_output_type or self.inference_output_type,
        )
