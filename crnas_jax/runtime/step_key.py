"""The names of steps, and what a step of a run depends on, as a value that can be compared."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping

from crnas_jax.runtime.files import digest

# Rows that stand for a folder of networks each.
FINALISTS, RANKING = "finalists", "ranking"
ARCHITECTURE_SEARCH = "architecture_search"
# The folder of its candidates, and their name in the journal.
CANDIDATES = "candidates"


def seed_step(step: str, seed_index: int) -> str:
    """Return the step of a network's training with a further seed; the first is the step itself."""
    return f"{step}/seed{seed_index}" if seed_index else step


def seed_scores(search: str, seed_index: int) -> str:
    """Return the name in the journal of a search's scores with a further seed."""
    return f"{search}, seed {seed_index}" if seed_index else search


def split_seed(step: str) -> tuple[str, int]:
    """Return a step without its seed, and the number of the seed."""
    seed = re.search(r"/seed(\d+)", step)
    return (step, 0) if seed is None else (step.replace(seed[0], ""), int(seed[1]))


def row_of(step: str) -> str:
    """Return the row of steps that one belongs to (`settings.step_keys.READS`): its kind."""
    parts = split_seed(step)[0].split("/")
    if parts[0] in (FINALISTS, RANKING):
        del parts[1:2]
    return "/".join(parts)


@dataclasses.dataclass(frozen=True)
class StepKey:
    """Everything that can change the result of a step.

    Attributes:
      fields: fields of the config by dotted name, and their values (of JSON's types).
      data: digests of the splits by name.
      inputs: digests of what earlier steps and other folders hand over, by name; None where that is
        not known yet.
    """

    fields: Mapping[str, object]
    data: Mapping[str, str]
    inputs: Mapping[str, str | None]

    @classmethod
    def from_json(cls, content: dict) -> "StepKey":
        """Return a key from its JSON form."""
        return cls(content["fields"], content["data"], content["inputs"])

    def to_json(self) -> dict:
        """Return the key in JSON's types, with its digest as `key`."""
        content = {name: dict(getattr(self, name)) for name in ("fields", "data", "inputs")}
        return {"key": self.digest, **content}

    @property
    def is_known(self) -> bool:
        """Whether all inputs are known."""
        return None not in self.inputs.values()

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        content = [dict(self.fields), dict(self.data), dict(self.inputs)]
        return digest(json.dumps(content, sort_keys=True))

    def changes(self, old: "StepKey") -> list[str]:
        """Say what differs from an earlier key; what is not known counts as equal."""
        names = sorted(self.fields.keys() | old.fields.keys())
        changes = [
            f"{name} {_short(old.fields.get(name))} -> {_short(self.fields.get(name))}"
            for name in names
            if json.dumps(old.fields.get(name)) != json.dumps(self.fields.get(name))
        ]
        changes += [
            f"data {name}"
            for name in sorted(self.data.keys() | old.data.keys())
            if old.data.get(name) != self.data.get(name)
        ]
        names = sorted(self.inputs.keys() | old.inputs.keys())
        return changes + [
            f"{name} is another"
            for name in names
            if not (name in self.inputs and self.inputs[name] is None)
            and self.inputs.get(name) != old.inputs.get(name)
        ]


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
