"""Environments of other libraries, and of yours, as this library sees them; each file knows one family."""
