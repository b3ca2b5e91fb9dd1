"""Every method on one model, one database, the same budgets and the same held-out text."""
