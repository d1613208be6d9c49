"""Monitoring: logs, metrics, traces and traffic counts."""
