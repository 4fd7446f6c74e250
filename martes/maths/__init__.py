"""Pure functions of tensors: returns, losses, distributions, masks, statistics, schedules. Imports torch alone."""
