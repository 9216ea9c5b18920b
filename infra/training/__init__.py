"""The trainers, which run under torchrun, with their configuration and DeepSpeed's.

Flows and tasks import only `infra.training.config`, which needs no torch.
"""
