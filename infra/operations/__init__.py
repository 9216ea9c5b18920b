"""Operation of an installation: the local stack, automations, alerts, the inventory of the store."""
