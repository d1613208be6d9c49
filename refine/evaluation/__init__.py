"""Measuring an adapter on sets that no traffic can change; the gate decides by the result."""
