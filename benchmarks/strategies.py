"""Which strategy finds good codes with few scores? On tables whose best code is known.

    python benchmarks/strategies.py
    python benchmarks/strategies.py --tables=5 --rate=0.003        REINFORCE with another setting

A code orders six items and gives four features one of four values each: 6! x 4^4 = 184,320 codes.
Its value is a sum of terms for an item at a place, for neighbouring items, for a feature's value,
for two features' values and for a feature's value with the item at its place, in standard
deviations over all codes. A score is the value plus normal noise of 0.5, the same whenever the code
is scored: a code is trained once. After a share s of its schedule (successive halving) the noise is
0.5 / sqrt(s), drawn anew; its proposals are counted in whole schedules.

Regret is the best value of the table minus the value of the code with the best score.
"""

import dataclasses
import itertools
import time

import numpy as np
from absl import app, flags
from common import report
from scipy import special

from crnas_jax.search.strategies.proposing import (
    RandomProposals,
    RegularizedEvolution,
    run_proposer,
)
from crnas_jax.search.strategies.reinforce import ControllerOptions, Reinforce
from crnas_jax.search.strategies.successive_halving import successive_halving
from crnas_jax.spaces.scale_permuted import Decision

_TABLES = flags.DEFINE_integer("tables", 20, "Tables; each strategy runs on each with one seed.")
_RATE = flags.DEFINE_float("rate", ControllerOptions.rate, "REINFORCE: learning rate.")
_ENTROPY = flags.DEFINE_float("entropy", ControllerOptions.entropy, "REINFORCE: entropy weight.")
_POPULATION = flags.DEFINE_integer("population", 20, "Evolution: codes in the population.")
_PARENTS = flags.DEFINE_integer("parents", 10, "Evolution: codes that a parent is chosen from.")
_IN_FLIGHT = flags.DEFINE_integer("in_flight", 1, "Proposals at once.")
_ONLY = flags.DEFINE_list("only", [], "Strategies to run; all when empty.")
_WRITE = flags.DEFINE_bool("write", True, "Write the result beside those of other benchmarks.")

NUM_ITEMS, NUM_FEATURES, NUM_VALUES = 6, 4, 4
NOISE, COUNTS, LAST = 0.5, (500, 4000), 100


class TableSpace:
    """The codes of a table."""

    enumerable, noun = False, "code"
    decisions = (Decision("order", NUM_ITEMS),) * NUM_ITEMS + (
        Decision("feature", NUM_VALUES),
    ) * NUM_FEATURES

    def count(self):
        """Return the number of codes."""
        return len(CODES)

    def enumerate(self):
        """List all codes, ascending."""
        return iter(CODES)

    def mask(self, partial):
        """Return which values the next decision may have."""
        mask = np.ones(self.decisions[len(partial)].num_options, bool)
        if len(partial) < NUM_ITEMS:
            mask[list(partial)] = False
        return mask

    def sample(self, rng):
        """Draw a code uniformly."""
        features = rng.integers(NUM_VALUES, size=NUM_FEATURES)
        return (*rng.permutation(NUM_ITEMS).tolist(), *features.tolist())

    def mutate(self, code, rng):
        """Swap two items, or draw a feature's value anew."""
        code = list(code)
        if rng.integers(2):
            first, second = rng.choice(NUM_ITEMS, 2, replace=False)
            code[first], code[second] = code[second], code[first]
        else:
            place = NUM_ITEMS + rng.integers(NUM_FEATURES)
            code[place] = int((code[place] + rng.integers(1, NUM_VALUES)) % NUM_VALUES)
        return tuple(code)


CODES = [
    (*order, *features)
    for order in itertools.permutations(range(NUM_ITEMS))
    for features in itertools.product(range(NUM_VALUES), repeat=NUM_FEATURES)
]
PLACES = {code: place for place, code in enumerate(CODES)}


@dataclasses.dataclass
class Table:
    """Values and scores of all codes.

    Attributes:
      seed: seed of both.
    """

    seed: int

    def __post_init__(self):
        rng, codes = np.random.default_rng([21, self.seed]), np.array(CODES)
        order, features = codes[:, :NUM_ITEMS], codes[:, NUM_ITEMS:]
        values = np.zeros(len(codes))
        terms = rng.normal(size=(NUM_ITEMS, NUM_ITEMS))
        for place in range(NUM_ITEMS):
            values += terms[place, order[:, place]]
        pairs = rng.normal(size=(NUM_ITEMS, NUM_ITEMS))
        for place in range(NUM_ITEMS - 1):
            values += pairs[order[:, place], order[:, place + 1]]
        terms = rng.normal(size=(NUM_FEATURES, NUM_VALUES))
        joint = rng.normal(size=(NUM_FEATURES, NUM_VALUES, NUM_ITEMS))
        for feature in range(NUM_FEATURES):
            values += terms[feature, features[:, feature]]
            values += joint[feature, features[:, feature], order[:, feature]]
        for first, second in itertools.combinations(range(NUM_FEATURES), 2):
            pairs = rng.normal(size=(NUM_VALUES, NUM_VALUES))
            values += pairs[features[:, first], features[:, second]]
        self.values = (values - values.mean()) / values.std()
        self.scores = self.values + NOISE * rng.normal(size=len(codes))
        self._partial = {}

    def score(self, codes):
        """Score codes after their whole schedule."""
        return [float(self.scores[PLACES[code]]) for code in codes]

    def score_at(self, codes, share):
        """Score codes after a share of their schedule."""
        if share == 1:
            return self.score(codes)
        if share not in self._partial:
            noise = np.random.default_rng([22, self.seed, round(1 / share)])
            deviations = NOISE / np.sqrt(share) * noise.normal(size=len(CODES))
            self._partial[share] = self.values + deviations
        return [float(self._partial[share][PLACES[code]]) for code in codes]

    def regret(self, code):
        """Return how far a code is from the best one."""
        return float(self.values.max() - self.values[PLACES[code]])

    begin = staticmethod(lambda code: None)

    def finish(self, code):
        """Score a code that was begun."""
        return float(self.scores[PLACES[code]])


def run(name, table):
    """Return what a strategy reaches on a table."""
    space, seed = TableSpace(), table.seed
    if name == "halving":
        found = {count: successive_halving(space, table, seed, count)[0][0] for count in COUNTS}
        return {f"regret {count}": table.regret(code) for count, code in found.items()}
    options = ControllerOptions(rate=_RATE.value, entropy=_ENTROPY.value)
    proposer = {
        "random": lambda: RandomProposals(space),
        "evolution": lambda: RegularizedEvolution(space, _POPULATION.value, _PARENTS.value),
        "reinforce": lambda: Reinforce(space, options=options, seed=seed),
    }[name]()
    results = run_proposer(proposer, table, COUNTS[-1], _IN_FLIGHT.value, seed)
    row = {}
    for count in COUNTS:
        best, _ = max(results[:count], key=lambda pair: pair[1])
        row[f"regret {count}"] = table.regret(best)
        row[f"distinct {count}"] = len({code for code, _ in results[:count]})
    last = [table.values[PLACES[code]] for code, _ in results[-LAST:]]
    return {**row, "mean of the last 100": float(np.mean(last))}


def interval(values):
    """Return the mean and its 95 % interval over tables."""
    values = np.asarray(values, float)
    half = special.stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return {"mean": round(mean, 3), "ci95": [round(mean - half, 3), round(mean + half, 3)]}


def main(argv):
    """Run all strategies on all tables and report them."""
    del argv
    tables, rows, seconds = [Table(seed) for seed in range(_TABLES.value)], {}, {}
    for name in _ONLY.value or ("random", "evolution", "halving", "reinforce"):
        start = time.perf_counter()
        rows[name] = [run(name, table) for table in tables]
        seconds[name] = time.perf_counter() - start
    result = {
        "tables": len(tables),
        "codes": len(CODES),
        "evolution": {"population": _POPULATION.value, "parents": _PARENTS.value},
        "controller": dataclasses.asdict(
            ControllerOptions(rate=_RATE.value, entropy=_ENTROPY.value)
        ),
        "in_flight": _IN_FLIGHT.value,
        "rows": {
            name: {field: interval([row[field] for row in of_tables]) for field in of_tables[0]}
            for name, of_tables in rows.items()
        },
        "gain over random": {
            name: {
                field: interval(
                    [
                        first[field] - row[field]
                        for first, row in zip(rows["random"], of_tables, strict=True)
                    ]
                )
                for field in of_tables[0]
                if field.startswith("regret")
            }
            for name, of_tables in rows.items()
            if "random" in rows and name != "random"
        },
        "seconds": seconds,
    }
    if _WRITE.value:
        report("strategies", result)
    else:
        print(result["rows"], result["gain over random"], seconds, sep="\n")


if __name__ == "__main__":
    app.run(main)
