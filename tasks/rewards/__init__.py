"""Rewards of responses, and what is made from them: the data for SFT, the preference pairs. Imports responses."""
