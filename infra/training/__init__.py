"""What runs under torchrun: the trainers, their configuration, DeepSpeed.

Flows and tasks import `infra.training.config` alone, which needs no torch.
"""
