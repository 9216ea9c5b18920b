"""Child processes that cannot outlive us, with limits of time and memory; torchrun; what the machine computes with."""
