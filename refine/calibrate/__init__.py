"""Fits what a model says of harm to labelled rows."""
