"""Fitting a model's verdicts to labelled examples."""
