"""What STILL-1's policy and reward model learn from each other."""
