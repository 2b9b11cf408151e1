"""What becomes of a working process is said in one line, and begun again where asked."""

import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

PROGRAM = """
import os, pathlib, signal, sys, time
from crnas_jax.parallel.supervisor import SupervisorOptions, connected, log_to, supervise, waiting

folder = pathlib.Path(sys.argv[1])

def native(text):
    os.write(2, text)

def die_of(lost):
    connected()
    fatal = b"JAX distributed service detected fatal errors: "
    native(fatal + b"(stopped sending heartbeats):\\n" + lost)
    os.abort()

def hang():
    with waiting("a step"):
        time.sleep(60)

def wait_for_others():
    with waiting("a step"):
        pass
    time.sleep(1.5)  # no wait for others
    with waiting("compilation", at_least=60):
        time.sleep(1.5)
    return 0

def come_alone():
    native(b"JAX distributed service detected fatal errors: DEADLINE_EXCEEDED")
    os.abort()

def say():
    print("out", flush=True)
    native(b"before\\n")
    log_to(folder / "logs" / "host.txt")
    print("later", flush=True)
    native(b"after\\n")
    return 3

def second_time():
    file = folder / "begun"
    if file.exists():
        return 0
    file.touch()
    os.kill(os.getpid(), signal.SIGKILL)

def live():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(17))
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)

def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)

def lose_again():
    log_to(folder / "log")
    if (folder / "log").stat().st_size == 0:
        die_of(b"2\\n")
    os.kill(os.getpid(), signal.SIGKILL)

def bug():
    print("Traceback: a bug", file=sys.stderr)
    return 1

def stop_and_die():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.5)
    os.abort()

works = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "others lost": lambda: die_of(b"2, 3\\nThe tasks"),
    "primary lost": lambda: die_of(b""),
    "another begun again": lambda: die_of(b"task 2 unexpectedly tried to connect with a different"),
}
work = works.get(sys.argv[2]) or globals()[sys.argv[2]]
options = SupervisorOptions(heartbeat_seconds=1, hang_seconds=1, restarts=int(sys.argv[4]))
sys.exit(supervise(work, int(sys.argv[3]), options))
"""


def _start(folder, work, host=1, restarts=0):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), work, str(host), str(restarts)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _pid(folder):
    end = time.monotonic() + 60
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    return int((folder / "pid").read_text())


@pytest.mark.parametrize(
    ("work", "status", "line"),
    [
        ("killed", 75, "error: host 1: ended by SIGKILL"),
        ("others lost", 75, "error: host 2 and host 3: lost"),
        ("primary lost", 75, "error: host 0: lost"),
        ("another begun again", 75, "error: host 2: lost"),
        ("come_alone", 75, "error: host 1: not all hosts came"),
        ("hang", 75, "error: host 1: a step took longer than 1 s (--hang_seconds)"),
        ("wait_for_others", 0, ""),
    ],
)
def test_an_end_is_one_line(tmp_path, work, status, line):
    process = _start(tmp_path, work)
    out, err = process.communicate()
    assert process.returncode == status
    assert out == ""
    assert line in err
    assert len(err.splitlines()) == bool(line)
    assert not line or "the same command goes on" in err


@pytest.mark.parametrize(("host", "screen"), [(0, "out\nlater\n"), (1, "")])
def test_the_primary_alone_is_on_the_screen(tmp_path, host, screen):
    process = _start(tmp_path, "say", host)
    assert process.communicate() == (screen, "")
    assert process.returncode == 3
    lines = (tmp_path / "logs" / "host.txt").read_text().split()
    assert lines == ["before", "after"] if host == 0 else ["out", "before", "later", "after"]


@pytest.mark.parametrize(("restarts", "status"), [(0, 75), (1, 0)])
def test_work_is_begun_again(tmp_path, restarts, status):
    process = _start(tmp_path, "second_time", restarts=restarts)
    err = process.communicate()[1]
    assert process.returncode == status
    assert ("begun again, 1 of 1" in err) == bool(restarts)


def test_what_an_earlier_run_wrote_to_the_log_says_nothing_of_this_one(tmp_path):
    lines = [_start(tmp_path, "lose_again").communicate()[1] for _ in range(2)]
    assert "host 2: lost" in lines[0]
    assert "host 1: ended by SIGKILL" in lines[1]


def test_a_traceback_without_a_log_is_on_the_screen(tmp_path):
    process = _start(tmp_path, "bug")
    assert process.communicate() == ("", "Traceback: a bug\n")
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_passed_on(tmp_path, number):
    process = _start(tmp_path, "live")
    _pid(tmp_path)
    process.send_signal(number)
    assert process.communicate() == ("", "")
    assert process.returncode == 17  # what the work makes of it


def test_work_that_was_asked_to_stop_is_not_begun_again(tmp_path):
    process = _start(tmp_path, "stop_and_die", restarts=3)
    err = process.communicate()[1]
    assert process.returncode == 75
    assert "begun again" not in err


def test_a_second_request_ends_the_work(tmp_path):
    process = _start(tmp_path, "deaf")
    _pid(tmp_path)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.communicate()[0] == ""
    assert process.returncode == 143


def test_the_work_ends_with_its_supervisor(tmp_path):
    process = _start(tmp_path, "live")
    _pid(tmp_path)
    process.kill()
    process.communicate(timeout=30)  # its output is closed when the worker is gone too
