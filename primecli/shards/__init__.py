"""Rollout shards: their schema, Parquet files, and rollouts as arrays."""
