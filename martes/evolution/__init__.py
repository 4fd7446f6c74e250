"""Populations that tune themselves while they learn: functions over members, of which learners know nothing."""
