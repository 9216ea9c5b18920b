"""Artifacts: files that appear whole or not at all, locally or in S3, under a manifest that is written last."""
