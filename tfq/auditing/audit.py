# SPDX-License-Identifier: Apache-2.0
"""Is a flatbuffer what is required of it? Every op of every subgraph is looked at, each exception named, with why.

Unless something else is required, that is full int8: int8 must carry scale and zero_point; int32 is taken as bias, as
index or shape, in arithmetic on whole numbers, and in ops outside REAL_OPS as long as no scale makes reals of it; as
data of a kernel that computes on reals, or beside quantized data, it is a mistake that no interpreter runs. bool and
int64 are taken as indices and conditions, in arithmetic on whole numbers alone, and where control flow passes them on.
"""

import collections
import fnmatch
import re
from collections.abc import Iterator, Set
from typing import Any

from tfq.auditing import tensors
from tfq.auditing.composition import CONVERTED, Composition
from tfq.auditing.ops import OpRules
from tfq.auditing.report import FAILS, NOTE, AuditReport, Finding
from tfq.auditing.targets import TARGETS
from tfq.auditing.types import WHOLE_NUMBERS, border_types
from tfq.auditing.weights import weight_counts, weights_of
from tfq.auditing.words import shown
from tfq.config import AUDIT_SCHEMES, SCHEME_IO_TYPES, AuditConfig
from tfq.tflite.op_types import op_types
from tfq.tflite.reader import read
from tfq.tflite.records import Model, Op, Subgraph


def audit_model(data: bytes, config: AuditConfig | None = None) -> AuditReport:
    """What the flatbuffer `data` is made of, and each thing that keeps it from what `config.require` names.

    config: the scheme or the target to hold it against (full_int8 where nothing is required), the types that inputs and
        outputs must have, and `allow_float`: shell-style patterns on an op's Keras layer or output tensor name, whose
        findings about types are reported without failing; `allow_int16` and `allow_int4` likewise, where these types
        are all that there is to find. Custom, Flex and unknown ops are never allowed.
        The report of a model that fails is as good as another; to have an AuditError of it, see `require`.
    Raises FlatbufferError when the bytes are no flatbuffer, or a damaged one.
    """
    config = config or AuditConfig()
    model = read(data)
    composition = Composition(model)
    allowed = _Allowed(config)
    findings = [*_border_findings(model, config)]
    for graph in model.subgraphs:
        rules = OpRules(graph, config, composition, is_entry=tensors.is_entry(model, graph))
        findings += rules.findings(allowed)
        findings += tensors.tensor_findings(model, graph)
    findings += tensors.weight_findings(model)
    findings += [*_model_findings(model, allowed)]
    findings += [*_scheme_findings(config, composition.scheme, findings)]
    weights = weights_of(data, model)
    return AuditReport(
        requirement=config.require or "full_int8",
        scheme=composition.scheme,
        findings=tuple(findings),
        subgraphs=len(model.subgraphs),
        ops_visited=sum(len(graph.ops) for graph in model.subgraphs),
        tensors_visited=sum(len(tensors.touched(graph)) for graph in model.subgraphs),
        op_counts=dict(collections.Counter(_counted_name(op) for graph in model.subgraphs for op in graph.ops)),
        op_types=op_types(model, _counted_name),
        input_types=tuple(tensor.dtype for tensor in model.main_subgraph.input_tensors),
        output_types=tuple(tensor.dtype for tensor in model.main_subgraph.output_tensors),
        model_bytes=model.model_bytes,
        weights=weights,
        **weight_counts(weights),
    )


class _Allowed:
    """What the config's patterns allow, and which of them have matched something."""

    def __init__(self, config: AuditConfig) -> None:
        self._any = _Patterns("allow_float", config.allow_float)
        # int64 are the biases of 16 bits' activations.
        self._by_types = {
            frozenset({"int16", "int64"}): _Patterns("allow_int16", config.allow_int16),
            frozenset({"int4"}): _Patterns("allow_int4", config.allow_int4),
        }

    def __call__(self, graph: Subgraph, op: Op, dtypes: Set[str] = frozenset()) -> bool:
        """Whether `op` may be as it is. dtypes: what of it is against the rules; empty where it is not its types."""
        names = [*([op.keras_layer] if op.keras_layer else []), *(graph.tensors[index].name for index in op.outputs)]
        covered: set[str] = set()
        for types, patterns in self._by_types.items():
            if dtypes & types and patterns.match(names):
                covered |= types
        return self._any.match(names) or bool(dtypes and dtypes <= covered)

    @property
    def unused(self) -> Iterator[tuple[str, str]]:
        """(flag, pattern) of each that has matched nothing of its kind."""
        for patterns in (self._any, *self._by_types.values()):
            for pattern in patterns.unused:
                yield patterns.flag, pattern


class _Patterns:
    """The patterns of one flag, and which of them have matched something."""

    def __init__(self, flag: str, patterns: tuple[str, ...]) -> None:
        self.flag = flag
        self._patterns = {pattern: re.compile(fnmatch.translate(pattern)).match for pattern in patterns}
        self._cache: dict[str, bool] = {}
        self.unused = dict.fromkeys(patterns)

    def match(self, names: list[str]) -> bool:
        """Whether one of them fits one of `names`."""
        return any(self._match(name) for name in names)

    def _match(self, name: str) -> bool:
        if name not in self._cache:
            hits = [pattern for pattern, match in self._patterns.items() if match(name)]
            for pattern in hits:
                self.unused.pop(pattern, None)
            self._cache[name] = bool(hits)
        return self._cache[name]


def _border_findings(model: Model, config: AuditConfig) -> Iterator[Finding]:
    """Inputs and outputs of every subgraph that a caller can run."""
    input_types, output_types = border_types(config)
    scheme = AUDIT_SCHEMES.get(config.require or "full_int8")
    possible = SCHEME_IO_TYPES[scheme] if scheme else ()
    for graph in tensors.entries(model):
        for place, ends, wanted in (
            ("input", graph.input_tensors, input_types),
            ("output", graph.output_tensors, output_types),
        ):
            for tensor in ends:
                subject = f"{place} {shown(tensor.name)} of subgraph {graph.index} is {tensor.dtype}"
                where: dict[str, Any] = {"subgraph": graph.index, "tensor": shown(tensor.name)}
                if tensor.dtype in WHOLE_NUMBERS and not tensor.is_quantized:
                    message = f"{subject}: whole numbers (indices, classes), which have no int8 form"
                    yield Finding(kind="index_io", severity=NOTE, message=message, **where)
                elif tensor.dtype not in wanted:
                    flag = f"inference_{place}_type"
                    message = f"{subject}, wanted {' or '.join(wanted)}: convert with --{flag}={wanted[0]}"
                    if tensor.dtype in possible:
                        message += f", or ask for --{flag}={tensor.dtype}"
                    yield Finding(kind="io_type", severity=FAILS, message=message, **where)


def _model_findings(model: Model, allowed: _Allowed) -> Iterator[Finding]:
    if not any(graph.ops for graph in model.subgraphs):
        message = "the model has no ops, wanted at least one: there is nothing to prove: convert the model again"
        yield Finding(kind="no_ops", severity=FAILS, message=message)
    if not model.signatures:
        message = (
            "the model has no signature, wanted serving_default: callers must go by tensor order: "
            "convert with tfq, or add one with tfq.tflite.add_signature"
        )
        yield Finding(kind="missing_signature", severity=NOTE, message=message)
    for flag, pattern in allowed.unused:
        other = {"allow_int16": "has 16 bits", "allow_int4": "has weights of 4 bits"}.get(flag, "is not int8")
        message = f"--{flag} {pattern!r} matches no op that {other}: a typo, or no longer needed"
        yield Finding(kind=f"unused_{flag}", severity=NOTE, message=message)


def _scheme_findings(config: AuditConfig, scheme: str, findings: list[Finding]) -> Iterator[Finding]:
    """That the model as a whole is another scheme, where no op of it told so."""
    if config.require in TARGETS:
        target = TARGETS[config.require]
        wanted, title = target.schemes, f" for {target.title}"
    elif config.require == "full_int8" or not config.require:
        return
    else:
        wanted, title = (AUDIT_SCHEMES[config.require],), ""
        if any(finding.severity == FAILS or finding.allowed for finding in findings):
            return
    made = CONVERTED.get(scheme, "" if title else scheme)
    if made and made not in wanted:
        message = f"the model is {scheme}, wanted {' or '.join(wanted)}{title}: convert with --scheme={wanted[0]}"
        yield Finding(kind="scheme", severity=FAILS, message=message)


def _counted_name(op: Op) -> str:
    return f"CUSTOM:{op.custom_code[:80]}" if op.name == "CUSTOM" else op.name
