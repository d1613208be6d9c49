"""The revisions, oldest date first. A released one is never edited."""
