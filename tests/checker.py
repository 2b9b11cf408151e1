"""The type checker that tests run the package under."""

import beartype

# As PEP 484 says, an int is accepted where a float is asked for.
check_types = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
