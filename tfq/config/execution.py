# SPDX-License-Identifier: Apache-2.0
"""Settings of the processes and machines that share the work of a command."""

from dataclasses import dataclass

from tfq.config.base import Config, setting


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig(Config):
    """Settings of the processes and machines that share the work of a command. Results do not depend on them."""

    name: str = setting(
        "",
        "processes or machines that share the examples: local, or ray:ADDRESS; empty does all work in this process",
        choices_of="executor",
        names_section=True,
    )
    num_workers: int = setting(
        0, "tasks that run at the same time; 0 is one for each CPU of this machine or of the cluster", minimum=0
    )
    num_shards: int = setting(
        8, "parts that the examples are split into; a killed process or machine costs the parts it had", minimum=1
    )
