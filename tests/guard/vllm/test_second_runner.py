"""The tests of the asynchronous scheduler again, with the model runner and the kernels that vLLM
uses on a GPU."""

import subprocess
import sys

import pytest

from guard.vllm.session import ASYNC_SCHEDULER
from tests.guard.vllm import test_scheduler

_OPTIONS = ("-q", "-p", "tests.guard.vllm.interpreted", "-p", "no:cacheprovider")


@pytest.mark.full
def test_the_asynchronous_scheduler_works_with_the_second_model_runner() -> None:
    command = (sys.executable, "-m", "pytest", *_OPTIONS, "-k", ASYNC_SCHEDULER)
    done = subprocess.run(
        [*command, str(test_scheduler.__file__)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
