# SPDX-License-Identifier: Apache-2.0
"""Decide what a file is audited as: the scheme or target that is required, or else the scheme that it has."""

from dataclasses import dataclass

from tfq.auditing.composition import CONVERTED, Composition
from tfq.auditing.schemes import NARROW, Borders, SchemeRules, TypeRules
from tfq.auditing.targets import Target, find_target
from tfq.config import AUDIT_SCHEMES, IO_TYPES, SCHEME_IO_TYPES, AuditConfig
from tfq.tflite.records import Subgraph

_NAMES = {scheme: name for name, scheme in AUDIT_SCHEMES.items()}
# Schemes of files from other tools, which tfq does not write -> the types of their inputs and outputs.
_UNSIGNED, _NARROW_WEIGHTS = "full_uint8", "int4_weights"
_OTHER_IO_TYPES = {_UNSIGNED: ("uint8", "float32"), _NARROW_WEIGHTS: SCHEME_IO_TYPES["int8"]}


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What a file is audited as.

    Attributes:
        name: The scheme or target: a value of `AuditConfig.require`, or a scheme that tfq does not write.
        is_required: Whether the config requires it. If not, it is the file's own scheme.
        scheme: The conversion scheme whose types the ops must have; None if a target sets the rules.
        target: The target that must run the file, or None.
        is_unsigned: Whether real values are uint8.
        input_types: The types that the model's inputs may have.
        output_types: The types that the model's outputs may have.
        accepts_raw_inputs: Whether inputs with raw integers are allowed: no type and no target is required.
    """

    name: str
    is_required: bool
    scheme: str | None
    target: Target | None
    is_unsigned: bool
    input_types: tuple[str, ...]
    output_types: tuple[str, ...]
    accepts_raw_inputs: bool

    @classmethod
    def of(cls, config: AuditConfig, composition: Composition) -> "Basis":
        """Return the basis of an audit by `config` of a file with this composition."""
        name = config.require or _own_scheme(composition)
        target, scheme = find_target(name), AUDIT_SCHEMES.get(name)
        if target:
            own = target.io_types
        elif config.require:
            own = SCHEME_IO_TYPES[AUDIT_SCHEMES[name]][:1]
        else:
            own = SCHEME_IO_TYPES[scheme] if scheme else _OTHER_IO_TYPES.get(name, IO_TYPES[1:])
        if target and target.schemes == ("int8",):
            scheme = "int8"
        inputs, outputs = config.inference_input_type, config.inference_output_type
        return cls(
            name=name,
            is_required=bool(config.require),
            scheme=scheme,
            target=target,
            is_unsigned=name == _UNSIGNED or bool(target and target.full_uint8 and composition.scheme == _UNSIGNED),
            input_types=(inputs,) if inputs else own,
            output_types=(outputs,) if outputs else own,
            accepts_raw_inputs=not inputs and target is None,
        )

    def borders(self, graph: Subgraph, *, is_entry: bool) -> Borders:
        """Return the model's inputs and outputs in `graph`, which a caller can run if `is_entry`."""
        raw = self.accepts_raw_inputs
        return Borders(graph, self.input_types, self.output_types, accepts_raw=raw, is_entry=is_entry)

    def type_rules(self, graph: Subgraph, borders: Borders) -> TypeRules | SchemeRules | None:
        """Return the rules for the types of the ops of `graph`, or None if there are none."""
        if self.is_unsigned:
            return TypeRules(graph, borders, "uint8")
        if self.scheme == "int8":
            return TypeRules(graph, borders)
        if self.name == _NARROW_WEIGHTS:
            return TypeRules(graph, borders, weights=NARROW)
        # The types of weights do not decide whether a file with float activations has its own scheme.
        if self.scheme and (self.is_required or self.scheme == "int16x8"):
            return SchemeRules(graph, self.scheme, borders)
        return None


def _own_scheme(composition: Composition) -> str:
    """Return the scheme that a file of this composition is audited as.

    A mixed file is audited as the scheme of its integer activations, so that its other ops are reported. A file with
    floats of several types has no scheme, and its types are not judged.
    """
    scheme = composition.scheme
    if scheme in CONVERTED:
        return _NAMES[CONVERTED[scheme]]
    if scheme != "mixed":
        return scheme
    by_type = {"int8": "full_int8", "int16": "int16x8", "uint8": _UNSIGNED}
    return next((name for dtype, name in by_type.items() if dtype in composition.activations), scheme)
