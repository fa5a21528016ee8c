"""Signals, in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

from zsnr_jax import preemption

SCRIPT = """
import sys, time
from zsnr_jax import preemption
preemption.listen()
print("listens", flush=True)
start = time.monotonic()
while time.monotonic() < start + 60 and not (preemption.requested() and sys.argv[1:] == ["ends"]):
    time.sleep(0.01)
try:
    preemption.check("waiting")
except preemption.Preempted as stopped:
    print(stopped)
    sys.exit(stopped.exit_code)
"""


def _listening(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "listens\n"
    return process


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_noticed_at_the_next_place(number) -> None:
    process = _listening("ends")
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert out == f"{number.name} while waiting\n"
    assert f"{number.name}: ending at the next step; once more ends at once." in errors


def test_a_second_signal_ends_at_once() -> None:
    process = _listening("does not end")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_while_python_ends_does_not_change_the_code(number) -> None:
    script = f"""
import os
from zsnr_jax import preemption
preemption.listen()
class Last:
    def __del__(self, kill=os.kill, me=os.getpid()):
        kill(me, {int(number)})
        print("sent")
last = Last()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "sent\n")


def test_without_a_signal_nothing_ends() -> None:
    assert not preemption.requested()
    preemption.check("testing")
