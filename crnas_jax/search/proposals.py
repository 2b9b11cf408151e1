"""The record of what a strategy proposed, and snapshots of its state on the way."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from crnas_jax.errors import UserError
from crnas_jax.runtime.files import append, digest, read_json, whole_lines, write_json
from crnas_jax.runtime.team import decode, encode
from crnas_jax.spaces.space import Code

_FORMAT = 1
# Results between two snapshots of a strategy's state.
_SNAPSHOT = 25


class ProposalFile:
    """The proposals of a search, a JSON line each, flushed before the next; `proposing.Proposals`.

    A torn last line is dropped. Lines with another key, of another strategy for instance, are not
    used. Beside it lies a snapshot of the strategy's state after some results, with a digest of
    these. It only saves time: without it, or with other scores in the journal, the results are
    taken in again one by one.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        key: str,
        graph_of: Callable[[Code], Code],
        rejected: Callable[[], int] = lambda: 0,
    ):
        """Read the proposals that are there.

        Args:
          path: the file.
          key: digest of everything that proposals depend on besides scores.
          graph_of: function from a code to its network's graph.
          rejected: function that returns how many codes limits have rejected since it was called
            last.
        """
        self._path, self._key, self._rejected = pathlib.Path(path), key, rejected
        self._snapshot = self._path.with_name(f"{self._path.stem}_snapshot.json")
        self._covered = Chain(key)
        self._codes: list[Code] = []
        self._graphs: dict[Code, Code] = {}
        self._graph_of = graph_of
        self.num_rejected = 0
        self._read()

    def _read(self):
        for number, line in enumerate(whole_lines(self._path, repair=True), 1):
            try:
                row = json.loads(line)
                if row["format"] == _FORMAT and row["key"] == self._key:
                    self._take(tuple(row["code"]), tuple(row["graph"]), row["rejected"])
            except (ValueError, TypeError, KeyError) as error:
                problem, remedy = f"no proposal: {error}", "remove the line and those after it"
                raise UserError(self._path, f"line {number}", problem, remedy) from error

    def _take(self, code, graph, rejected):
        self._codes.append(code)
        self._graphs[code] = graph
        self.num_rejected += rejected

    def __len__(self) -> int:
        return len(self._codes)

    def code(self, index: int) -> Code:
        """Return a recorded proposal."""
        return self._codes[index]

    def graph(self, code: Code) -> Code:
        """Return the graph of a code."""
        code = tuple(code)
        return self._graphs[code] if code in self._graphs else self._graph_of(code)

    def add(self, code: Code) -> None:
        """Record the next proposal."""
        code, rejected = tuple(map(int, code)), self._rejected()
        graph = self.graph(code)
        row = {"format": _FORMAT, "key": self._key, "proposal": len(self)}
        row |= {"code": list(code), "graph": list(graph), "rejected": rejected}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append(self._path, json.dumps(row) + "\n")
        self._take(code, graph, rejected)

    def restore(self, score_of: Callable[[Code], float | None]) -> tuple[int, Any] | None:
        """Return a number of results that were taken in, and the state after them, or None."""
        try:
            content = read_json(self._snapshot)
            count, chain = int(content["results"]), Chain(self._key)
            codes = self._codes[:count]
            chain.extend([(code, score_of(code)) for code in codes])
            if len(codes) == count and content["key"] == chain.digest:
                state = decode(content["state"])
                self._covered = chain
                return count, state
        except (UserError, KeyError, TypeError, ValueError):
            pass
        return None

    def keep(self, results: list[tuple[Code, float]], state: Any) -> None:
        """Keep a state now and then, with a digest of the results that it covers."""
        if len(results) % _SNAPSHOT == 0:
            if len(self._covered) > len(results):  # those of a snapshot that was not taken
                self._covered = Chain(self._key)
            self._covered.extend(results[len(self._covered) :])
            content = {"format": _FORMAT, "results": len(results)}
            content |= {"key": self._covered.digest, "state": encode(state)}
            write_json(self._snapshot, content, indent=None)


class Chain:
    """A digest of results that grows with them."""

    def __init__(self, key: str):
        """Begin with a key."""
        self.digest, self._count = digest(key), 0

    def __len__(self) -> int:
        return self._count

    def extend(self, results: Sequence[tuple[Code, float | None]]) -> None:
        """Add the next results."""
        for code, score in results:
            self.digest = digest(self.digest, repr((tuple(map(int, code)), score)))
        self._count += len(results)
