"""The run-time type checker of the tests: beartype, an int being good enough where a float is asked for."""

from beartype import BeartypeConf, beartype

types = beartype(conf=BeartypeConf(is_pep484_tower=True))
