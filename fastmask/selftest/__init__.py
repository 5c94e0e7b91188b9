"""Whether the ops and a model give the right values on the user's own device: ``fastmask selftest``."""
