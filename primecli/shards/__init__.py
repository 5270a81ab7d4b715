"""Rollout shards: schema, Parquet, rollouts as arrays."""
