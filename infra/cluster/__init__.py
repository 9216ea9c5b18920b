"""A Ray cluster under the flows: shards, servers and trainings on any of its nodes. Ray is imported here only."""
