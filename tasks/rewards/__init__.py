"""Rewards of responses, and what follows from them: the selection for SFT, the preference pairs. Imports responses."""
