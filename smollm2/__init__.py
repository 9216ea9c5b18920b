"""A small world for a real pre-trained model, SmolLM2-135M-Instruct: its weights, problems with answers that a program
checks, worked examples. It uses the project's public interfaces only."""
