"""The steps around the trainers, which run in processes of their own (`infra.training`)."""
