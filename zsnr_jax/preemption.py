"""Signals that ask a run to end: it saves, says so, and exits with a code that means "repeat me".

SIGTERM comes from schedulers and clouds, SIGINT from Ctrl-C, SIGUSR1 from SLURM (--signal). None of
them interrupts anything: loops ask, at places where nothing is half done. A second one, on a single
host, ends the process at once.

Many hosts must end at the same place, or those that go on wait for ever for the one that ended.
There JAX takes SIGTERM, and tells all hosts the first place that none of them has passed; places
are the calls of `requested`, of which every host must therefore make the same.
"""

import atexit
import os
import signal
from types import FrameType

from zsnr_jax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class _Notice:
    """What this process was sent: signals are of a process, and so is this."""

    received: signal.Signals | None = None
    many_hosts = False
    places = 0


def listen() -> None:
    """Take the signals from now on, until `listen_on_all_hosts`."""
    for number in SIGNALS:
        signal.signal(number, _take)
    atexit.register(_ignore)  # called after those of JAX and Orbax, which are registered later


def listen_on_all_hosts() -> None:
    """Let JAX take SIGTERM, as it does once hosts have found each other, and pass the others on."""
    _Notice.many_hosts = True
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if _Notice.received:  # while the hosts were looking for each other
        os.kill(os.getpid(), signal.SIGTERM)


def requested() -> bool:
    """Whether to end at this place. All hosts get the same answer, at latest two places late."""
    if not _Notice.many_hosts:
        return _Notice.received is not None
    from jax.experimental import multihost_utils  # late: listening begins before JAX is there

    _Notice.places += 1
    return multihost_utils.reached_preemption_sync_point(_Notice.places)


def check(doing: str) -> None:
    """End here if that is asked for, where there is nothing to save.

    Args: doing: what is broken off, for the message. Raises: Preempted.
    """
    if requested():
        raise Preempted(f"{name()} while {doing}")


def name() -> str:
    """The signal that came, in words."""
    return _Notice.received.name if _Notice.received else "a signal to one of the hosts"


def _ignore() -> None:
    """All is done and told: as Python ends it gives up its handlers, and a signal would kill it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _take(number: int, frame: FrameType | None) -> None:
    del frame
    if _Notice.received is not None:
        os._exit(128 + number)  # asked twice: the user does not want to wait
    _Notice.received = signal.Signals(number)
    told = f"\n{_Notice.received.name}: ending at the next step; once more ends at once.\n"
    os.write(2, told.encode())  # print may be what was interrupted
