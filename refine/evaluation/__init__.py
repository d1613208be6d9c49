"""Measuring an adapter on sets that no traffic can touch; gate.py decides by it."""
