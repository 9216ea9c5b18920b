"""Sampling responses and filtering them by rule. Imports queries and examples."""
