"""Asynchronous scheduling on a CPU, where vLLM turns it off because there is nothing to overlap.
Owns what its model runner takes from CUDA: streams and events, whose order a CPU keeps anyway.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from vllm.platforms.cpu import CpuPlatform


class _Event:
    def __init__(self, **_options: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def schedule_asynchronously(patch: pytest.MonkeyPatch) -> None:
    """Makes engines that are created from now on schedule a step before the last one's tokens are
    known."""
    check = CpuPlatform.check_and_update_config

    def check_and_update(_platform: type[CpuPlatform], config: Any) -> None:
        check(config)
        config.scheduler_config.async_scheduling = True

    patch.setattr(CpuPlatform, "check_and_update_config", classmethod(check_and_update))
    patch.setattr(torch.cuda, "Event", _Event)
    patch.setattr(torch.cuda, "current_stream", lambda: None)
    patch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
