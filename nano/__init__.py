"""A complete small world for a laptop: problems, models, judge. It uses the project by the doors that a user has."""
