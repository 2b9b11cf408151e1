"""Runs many commands of this project, each in a fork of one process that has everything imported.

python tests/forked.py < commands.json > results.json
Commands: lists of a script and its arguments. Results: {"status", "stdout", "stderr"} in order.
"""

import json
import os
import pathlib
import runpy
import sys
import tempfile
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

# Where torch is installed its import takes a second, which each command would spend again.
import tensorboardX  # noqa: E402, F401

import crnas_jax.experiments.plan  # noqa: E402
import crnas_jax.experiments.studies  # noqa: E402, F401


def run(command):
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        status = fork(command, stdout, stderr)
        stdout.seek(0)
        stderr.seek(0)
        return {"status": status, "stdout": stdout.read(), "stderr": stderr.read()}


def fork(command, stdout, stderr):
    pid = os.fork()
    if pid == 0:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        sys.argv = [str(ROOT / command[0]), *command[1:]]
        status = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    os.chdir(ROOT)
    json.dump([run(command) for command in commands], sys.stdout)
