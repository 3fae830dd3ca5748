# SPDX-License-Identifier: Apache-2.0
"""Settings of an audit: the scheme or target that a flatbuffer must fit."""

import dataclasses
from dataclasses import dataclass

from tfq.config.base import Config, setting
from tfq.config.conversion import IO_TYPES, SCHEMES, ConversionConfig, check_io_types
from tfq.patterns import explicit, in_source

# Value of `require` -> conversion scheme. full_int8 means that every op of an int8 model is int8.
AUDIT_SCHEMES = {"full_int8" if scheme == "int8" else scheme: scheme for scheme in SCHEMES}


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Config):
    """Settings of an audit: the scheme or target that a flatbuffer must fit, and the exceptions."""

    require: str = setting(
        "",
        "scheme that every op must have, or target that must be able to run the file; empty audits the file as the "
        "scheme that it has, and only reports",
        choices=("", *AUDIT_SCHEMES),
        choices_of="target",
    )
    inference_input_type: str = setting(
        "", "data type that the inputs must have; empty is the default of the scheme", choices=IO_TYPES
    )
    inference_output_type: str = setting(
        "", "data type that the outputs must have; empty is the default of the scheme", choices=IO_TYPES
    )
    allow_float: tuple[str, ...] = setting(
        (),
        "name patterns of layers or output tensors that may have any type, such as float; op:12 is op number 12 of "
        "this file; float:op:12 is the op that the conversion addressed as op:12",
    )
    allow_int16: tuple[str, ...] = setting(
        (), "patterns, as in allow_float, of layers whose activations may have 16 bits"
    )
    allow_int4: tuple[str, ...] = setting((), "patterns, as in allow_float, of layers whose weights may have 4 bits")
    execute: bool = setting(
        True, "run the file once on neutral inputs in a child process; a file that fails there fails the audit"
    )

    def __post_init__(self) -> None:
        """Check that the required scheme supports the types of inputs and outputs."""
        super().__post_init__()
        if self.require in AUDIT_SCHEMES:
            check_io_types(self, "audit", AUDIT_SCHEMES[self.require], f"audit.require={self.require}")

    def for_conversion(self, conversion: ConversionConfig, trained_int4: tuple[str, ...] = ()) -> "AuditConfig":
        """Return the audit of a flatbuffer converted with `conversion`.

        It requires the target or the scheme of the conversion, unless `require` names another one.

        Args:
            conversion: The settings of the conversion.
            trained_int4: Patterns of layers that were trained with 4-bit weights (`QATConfig.int4_layers`), by the
                names of the layers before the training: a flatbuffer has these.
        """
        scheme = next(name for name, scheme in AUDIT_SCHEMES.items() if scheme == conversion.scheme)
        return dataclasses.replace(
            self,
            require=self.require or conversion.target or scheme,
            allow_float=(*explicit(self.allow_float), *map(in_source, explicit(conversion.float_layers))),
            allow_int16=(*explicit(self.allow_int16), *map(in_source, explicit(conversion.int16_layers))),
            allow_int4=(
                *explicit(self.allow_int4),
                *map(in_source, explicit(conversion.int4_layers)),
                *explicit(trained_int4),
            ),
            inference_input_type=conversion.inference_input_type or self.inference_input_type,
            inference_output_type=conversion.inference_output_type or self.inference_output_type,
        )
