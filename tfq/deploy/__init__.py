# SPDX-License-Identifier: Apache-2.0
"""App bundles: a `.tflite` with metadata, io.json, golden vectors, and sources that run it on a platform."""

from tfq.deploy.bundle import Bundle, check_settings, export_bundle
from tfq.deploy.description import add_metadata
from tfq.deploy.golden import GoldenVectors
from tfq.deploy.mediapipe import TASKS, MediaPipeTask, TaskProblem, find_task, mediapipe_problems, tasks_for
from tfq.deploy.metadata import TOKENIZERS, ModelDescription, build_metadata, with_model_metadata
from tfq.deploy.platform import BundleContents, Candidate, Platform, Problem, SelfTest, SelfTestResult

__all__ = [
    "TASKS",
    "TOKENIZERS",
    "Bundle",
    "BundleContents",
    "Candidate",
    "GoldenVectors",
    "MediaPipeTask",
    "ModelDescription",
    "Platform",
    "Problem",
    "SelfTest",
    "SelfTestResult",
    "TaskProblem",
    "add_metadata",
    "build_metadata",
    "check_settings",
    "export_bundle",
    "find_task",
    "mediapipe_problems",
    "tasks_for",
    "with_model_metadata",
]
