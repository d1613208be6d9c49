"""What happens to an answer: critique, policy, release and the flag store. Knows no HTTP."""
