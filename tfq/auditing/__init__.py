# SPDX-License-Identifier: Apache-2.0
"""The static rules a .tflite is held to: schemes, types, targets; and why a rule is broken. Starts no interpreter."""

from tfq.auditing.audit import audit_model
from tfq.auditing.report import AuditReport, Execution, Finding, Weight, require, requirements_of
from tfq.auditing.targets import Target, find_target

__all__ = [
    "AuditReport",
    "Execution",
    "Finding",
    "Target",
    "Weight",
    "audit_model",
    "find_target",
    "require",
    "requirements_of",
]
