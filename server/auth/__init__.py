"""Who may call which route: API keys, rate limits, cross-site checks and console sessions."""
