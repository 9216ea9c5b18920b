"""Operation of an installation: the local stack, Kubernetes, automations, alerts, the inventory of the store."""
