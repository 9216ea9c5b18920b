"""Training steps. The trainers themselves run in processes of their own (`infra.training`)."""
