"""Serve many people over HTTP: user store, shared batches, background adaptation, hand-over to other servers."""
