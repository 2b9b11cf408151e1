"""The record of a training: events that TensorBoard reads, and a disk that is full."""

import resource

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from crnas_jax.training.logging import RunLog


def _events(folder):
    """Read the events of all files; a record is its length, a checksum, the content, another."""
    for path in sorted(folder.glob("events.*")):
        content, position = path.read_bytes(), 0
        while position < len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            yield Event.FromString(content[position + 12 : position + 12 + length])
            position += 16 + length


def test_events_hold_every_value_and_purge_what_is_repeated(tmp_path):
    for start in (0, 2):
        with RunLog(tmp_path, "net", start, 4, 8) as log:
            for step in range(start + 1, 5):
                log.metrics(step, {"loss": 0.5 * step})
    events = list(_events(tmp_path))
    starts = [e.step for e in events if e.session_log.status == SessionLog.START]
    assert starts == [1, 3]
    losses = [
        (event.step, value.simple_value)
        for event in events
        for value in event.summary.value
        if value.tag == "loss"
    ]
    assert losses == [(step, 0.5 * step) for step in (1, 2, 3, 4, 3, 4)]


def _log_many(log):
    for step in range(1, 2000):
        log.metrics(step, {"loss": 0.5})


def test_a_full_disk_ends_the_training_at_once(tmp_path):
    """The limit of a file's size stands for it; a writer in a thread would be waited for."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(tmp_path, "net", 0, 10**6, 8) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                _log_many(log)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
