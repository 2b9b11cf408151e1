"""The working folder of a run: its config and data, and which steps are finished.

Of several processes the primary alone looks at the folder and changes it; what it finds and decides
is the same for all of them.
"""

import contextlib
import fcntl
import json
import pathlib
import re
import time
from collections.abc import Callable, Mapping

from crnas_jax.errors import UserError
from crnas_jax.runtime import activity, interruption, ownership, team
from crnas_jax.runtime.files import read_json, write_json
from crnas_jax.runtime.step_key import StepKey

# Version of the folder's files. Before format 3 a folder belonged to one whole config.
FORMAT = 3
_ANOTHER = "restore it, or choose another --workdir"
# Within which a file of one host has to appear on the others.
_SHARED_SECONDS = 15.0
_SET_ASIDE = "set_aside"


class Workdir:
    """A folder that belongs to one data set, and to one process at a time.

    Every step of the procedure has a subfolder, with `key.json` once it is begun and `result.json`
    once it is finished. A folder with another key than its step has now is set aside, and taken
    back when the step has that key again.

    Attributes:
      path: path of the folder.
      redo: whether steps with another key may be repeated; otherwise that is an error.
      num_devices: devices that the steps run on, for their results.
    """

    def __init__(self, path: str | pathlib.Path, redo: bool = False, num_devices: int = 1):
        """Name the folder; nothing is touched before `claim`."""
        self.path, self.redo, self.num_devices = pathlib.Path(path), redo, num_devices
        self._lock, self._told = None, set()

    def claim(self, config: dict, data: Mapping[str, Mapping[str, str]]) -> None:
        """Reserve the folder for this process until `release` or the process ends.

        Args:
          config: the config; written to `config.json` in a new folder (see `record`).
          data: for every split the digests of its parts, by name.

        Raises:
          UserError: another process works here, the folder belongs to other data or has another
            format, or it cannot be written.
        """
        if re.match(r"[a-z0-9]{2,}:/", str(self.path)):  # a path's form of gs://
            remedy = "mount the bucket on every host, and name a folder of the mount"
            raise UserError(self.path, "--workdir", "an address, not a folder", remedy)
        team.decide(self._claim, config, data)

    def _claim(self, config, data):
        self._take_lock()
        try:
            self.require_same_data(data)
            if not (self.path / "config.json").exists():
                content = {"format": FORMAT, "config": config, "data": data}
                write_json(self.path / "config.json", content)
        except UserError:
            self.release()
            raise

    def _require_shared(self, token):
        """Raise UserError unless every process sees what the primary wrote."""
        end = time.monotonic() + _SHARED_SECONDS
        # A network's mount may show a new file late.
        while ownership.read_token(self.path) != token and time.monotonic() < end:
            time.sleep(0.5)
        sees = team.gather(ownership.read_token(self.path) == token)
        blind = [f"host {index}" for index, sees_it in enumerate(sees) if not sees_it]
        if blind:
            problem = f"{', '.join(blind)} cannot see what host 0 writes there"
            remedy = "name a folder that all hosts share"
            raise team.shared_error(self.path, "--workdir", problem, remedy)

    def _take_lock(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise UserError(
                self.path, "--workdir", str(error.strerror), "choose a folder you can write"
            ) from error
        try:
            # The kernel drops the lock when the process ends, however it ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            busy = isinstance(error, BlockingIOError)
            raise UserError(
                self.path,
                "--workdir",
                "another process is working in it" if busy else f"no lock: {error.strerror}",
                "wait for it, or choose another --workdir",
            ) from error

    def require_same_data(self, data: Mapping[str, Mapping[str, str]]) -> None:
        """Raise UserError if the folder belongs to other data or has another format."""
        team.decide(self._require_same_data, data)

    def _require_same_data(self, data):
        file = self.path / "config.json"
        if not file.exists():
            if (self.path / "journal.jsonl").exists() or any(self.path.glob("*/result.json")):
                raise UserError(file, "file", "missing beside results", _ANOTHER)
            return
        stored = read_config(self.path)["data"]
        for split, parts in data.items():
            for part, value in parts.items():
                if stored.get(split, {}).get(part, value) != value:
                    raise UserError(
                        self.path,
                        f"data.{split}",
                        f"its {part} are not those that this folder was begun with",
                        "restore them, or choose another --workdir",
                    )

    def consent(self, config: dict) -> None:
        """Set `redo` where it was given for this config before: a stopped run goes on."""
        content = team.decide(read_config, self.path)
        if content.get("redo") and json.dumps(content["config"]) == json.dumps(config):
            self.redo = True

    def record(self, config: dict, data: Mapping[str, Mapping[str, str]]) -> None:
        """Write the config that the folder is worked on with; the data of further splits too.

        From then on no earlier run writes here any more (`ownership`).

        Raises:
          UserError: a process of the team does not see the folder.
        """
        self._require_shared(team.decide(ownership.claim, self.path))
        team.decide(self._record, config, data)

    def _record(self, config, data):
        file = self.path / "config.json"
        content = read_json(file, _ANOTHER)
        new = {"format": FORMAT, "config": config, "data": {**content["data"], **data}}
        if self.redo:
            new["redo"] = True
        if json.dumps(new) != json.dumps(content):
            write_json(file, new)

    def release(self) -> None:
        """Let other processes work here."""
        activity.release(self.path)
        ownership.release(self.path)
        if self._lock:
            self._lock.close()
            self._lock = None

    def finished(self, step: str, key: StepKey) -> dict | None:
        """Return the result of a step that is finished with this key, be it set aside; or None."""
        return team.decide(self._finished, step, key)

    def _finished(self, step, key):
        stored = self.stored_key(step)
        is_here = stored is not None and stored.digest == key.digest
        path = (self.path / step if is_here else self._aside(step, key)) / "result.json"
        return _read_if_there(path)

    def stored_key(self, step: str) -> StepKey | None:
        """Return the key that a step was begun with; None if it is not begun."""
        file = self.path / step / "key.json"
        content = team.decide(_read_if_there, file)
        if content is None:
            return None
        try:
            return StepKey.from_json(content)
        except (KeyError, TypeError) as error:
            raise UserError(file, "fields", f"no key: {error}", "restore the file") from error

    def resume(self, step: str, key: StepKey) -> dict | None:
        """Exchange the folder of a step for one with this key; return the result if it is finished.

        Raises:
          UserError: the step was begun with another key, and `redo` is not set.
        """
        return team.decide(self._resume, step, key)

    def _resume(self, step, key):
        stored, aside = self.stored_key(step), self._aside(step, key)
        if stored is not None and stored.digest != key.digest:
            if not (self.redo or aside.exists()):
                raise repeats_error(self.path, f"{step} ({', '.join(key.changes(stored))})")
            _move(self.path / step, self._aside(step, stored), key_first=False)
            print(f"{step}: set aside as {self._aside(step, stored)}", flush=True)
        if aside.exists():
            _move(aside, self.path / step, key_first=True)
            file = self.path / step / "key.json"
            write_json(file, {**read_json(file), "taken_back": activity.now()})
            print(f"{step}: taken back from {aside}", flush=True)
        result = self.finished(step, key)
        if result is not None and step not in self._told:
            print(f"{step}: finished before", flush=True)
        self._told.add(step)
        return result

    def is_set_aside(self, step: str, key: StepKey) -> bool:
        """Return whether a step was begun with this key and is set aside."""
        return team.decide(self._aside(step, key).exists)

    def step(self, name: str, key: StepKey, run: Callable[[], dict]) -> dict:
        """Return the result of a step; call `run` unless the step is finished.

        `seconds` in the result adds up all invocations that ended by themselves or were asked to
        stop; what a killed invocation spent is not known. `devices` and `finished` (UTC) are those
        of the last one.

        Raises:
          UserError: the step was begun with another key, and `redo` is not set.
        """
        result = self.resume(name, key)
        if result is not None:
            return result
        interruption.stop_if_requested(f"{name} is not begun")
        spent_file = self.path / name / "spent.json"
        spent = team.decide(self._begin, name, key, spent_file)
        start = time.monotonic()
        try:
            result = run()
        except Exception:
            with contextlib.suppress(UserError):  # on a full disk the first error is the one
                write_json(spent_file, {"seconds": spent + time.monotonic() - start})
            raise
        seconds = round(spent + time.monotonic() - start, 1)
        end = {"seconds": seconds, "devices": self.num_devices, "finished": activity.now()}
        return team.decide(self._finish, name, {**result, **end}, spent_file)

    def begin(self, name: str, key: StepKey) -> dict | None:
        """Take the folder of a step for this key without doing its work yet.

        Returns:
          The result, if the step is finished.

        Raises:
          UserError: see `resume`.
        """
        result = self.resume(name, key)
        if result is None:
            team.decide(self._begin, name, key, self.path / name / "spent.json")
        return result

    def reopen(self, name: str) -> None:
        """Make a finished step one that is begun: there is more of it to do now."""
        spent = {"seconds": read_json(self.path / name / "result.json").get("seconds", 0.0)}
        write_json(self.path / name / "spent.json", spent)
        (self.path / name / "result.json").unlink()

    def _begin(self, name, key, spent_file):
        """Write the key of a step unless it is begun; return the seconds spent on it."""
        if self.stored_key(name) is None:
            self._require_nothing_in(name)
            content = {"format": FORMAT, "begun": activity.now(), **key.to_json()}
            write_json(self.path / name / "key.json", content)
        return (_read_if_there(spent_file) or {"seconds": 0.0})["seconds"]

    def _finish(self, name, result, spent_file):
        result = {"format": FORMAT, **result}
        write_json(self.path / name / "result.json", result)
        spent_file.unlink(missing_ok=True)
        return result

    def _require_nothing_in(self, step):
        """Refuse to work on what another key may have left."""
        for name in ("result.json", "checkpoints", "variables"):
            path = self.path / step / name
            if path.exists():
                file = path.with_name("key.json")
                raise UserError(file, "file", f"missing beside {name}", "move the folder away")

    def _aside(self, step, key):
        return self.path / _SET_ASIDE / f"{step.replace('/', '-')}-{key.digest[:8]}"


def _read_if_there(file):
    return read_json(file) if file.exists() else None


def read_config(path: pathlib.Path) -> dict:
    """Return the content of a working folder's `config.json`: `config` and `data`.

    Raises:
      UserError: the file is missing or no such file, or the folder is of another format.
    """
    file = pathlib.Path(path) / "config.json"
    content = read_json(file, _ANOTHER)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(
            file,
            "format",
            f"{found}, this version works in folders of format {FORMAT}",
            "finish it with the version that began it, or choose another --workdir",
        )
    if not all(isinstance(content.get(name), dict) for name in ("config", "data")):
        raise UserError(file, "fields", "no config and data in it", _ANOTHER)
    return content


def repeats_error(path: pathlib.Path, steps: str) -> UserError:
    """Make the error for work that is there and would be repeated."""
    return UserError(
        path,
        "--redo",
        f"finished or begun work would be repeated: {steps}",
        "set the fields back, choose another --workdir, or give --redo, which sets it aside",
    )


def _move(source, target, key_first):
    """Move the content of a step's folder, but not of the steps in it, which have their own keys.

    A kill in between leaves files in both; the key is then in the step's folder, so that `resume`
    finds both parts whatever key it is asked for.
    """
    ownership.require(source)
    target.mkdir(parents=True, exist_ok=True)
    paths = sorted(source.iterdir(), key=lambda path: (path.name == "key.json") != key_first)
    for path in paths:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not (path / "key.json").exists():
            path.rename(target / path.name)
    with contextlib.suppress(OSError):  # a step in it stays
        source.rmdir()
