"""Progress in a log: compilation is announced, and left out of the time to go."""

import time

from crnas_jax.runtime.progress import Progress


def test_the_first_unit_is_announced_and_does_not_count(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress("net", 5, done=1, line_seconds=0.0)
    for done, now in ((2, 100.0), (3, 102.0), (5, 106.0)):  # the first step compiles for 100 s
        clock[0] = now
        progress.update(done, loss=0.123456)
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        "net: step 1/5, compiling",
        "net: step 2/5 loss 0.1235",
        "net: step 3/5 loss 0.1235, 4 s left",
        "net: step 5/5 loss 0.1235, 0 s left",
    ]


def test_a_finished_list_says_nothing(capsys):
    Progress("net", 5, done=5).close()
    assert capsys.readouterr().out == ""
