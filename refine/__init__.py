"""What happens to a flag: from flagged answers to the next adapter, and the practice world."""
