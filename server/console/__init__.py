"""The review console: web pages over the same stores as the routes under /v1/guard."""
