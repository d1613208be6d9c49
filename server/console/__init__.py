"""The review console: pages for people, over the same stores as the routes under /v1/guard."""
