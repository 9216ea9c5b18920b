"""A complete small world for a laptop: problems, models, a judge. It uses the project's public interfaces only."""
