"""Self-test of the ops and of a model on the user's own device, against their specifications: ``fastmask selftest``."""
